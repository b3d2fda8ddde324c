"""The PostgreSQL sink, on a real server."""
