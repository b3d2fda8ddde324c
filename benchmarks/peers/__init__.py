"""What Indexport is measured against, each a program of its own."""
