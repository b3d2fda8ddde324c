"""Writes the PDF samples of the fictional company Tidewater Instruments into `samples/`.

Run it again after editing the text: ``python docs/build_sample_pdfs.py``. The same text gives the same bytes (ReportLab's
``invariant`` mode), so an unchanged document stays unchanged in version control. ``broken.pdf`` is the first third of the
security policy: what an interrupted copy leaves behind.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from reportlab.lib import colors
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle, getSampleStyleSheet
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import BaseDocTemplate, Flowable, Frame, PageTemplate, Paragraph, Spacer, Table, TableStyle

_SAMPLES = Path(__file__).resolve().parents[1] / "samples"
_STYLES = getSampleStyleSheet()
_BODY = ParagraphStyle("body", parent=_STYLES["BodyText"], fontSize=10, leading=13, spaceAfter=11)


def _heading(text: str, level: int = 1) -> Paragraph:
    return Paragraph(text, _STYLES[f"Heading{level}"])


def _body(*paragraphs: str) -> list[Flowable]:
    return [Paragraph(text, _BODY) for text in paragraphs]


def _table(rows: Sequence[Sequence[str]]) -> Table:
    """A ruled table whose header row is repeated on every page it spans."""
    style = [
        ("GRID", (0, 0), (-1, -1), 0.4, colors.HexColor("#8899aa")),
        ("BACKGROUND", (0, 0), (-1, 0), colors.HexColor("#dde6ee")),
        ("FONTNAME", (0, 0), (-1, 0), "Helvetica-Bold"),
        ("FONTSIZE", (0, 0), (-1, -1), 8),
        ("VALIGN", (0, 0), (-1, -1), "TOP"),
    ]
    return Table([list(row) for row in rows], repeatRows=1, style=TableStyle(style))


def _furniture(canvas: Canvas, _document: BaseDocTemplate, *, header: str, footer: str) -> None:
    width, height = A4
    canvas.saveState()
    canvas.setFont("Helvetica", 8)
    canvas.drawString(22 * mm, height - 12 * mm, header)
    canvas.drawString(22 * mm, 10 * mm, footer)
    canvas.drawRightString(width - 22 * mm, 10 * mm, f"Page {canvas.getPageNumber()}")
    canvas.restoreState()


def _write(path: Path, *, title: str, header: str, footer: str, story: list[Flowable]) -> None:
    document = BaseDocTemplate(
        str(path), pagesize=A4, title=title, author="Tidewater Instruments", subject="Sample document", invariant=1
    )
    frame = Frame(22 * mm, 20 * mm, A4[0] - 44 * mm, A4[1] - 42 * mm, id="body")
    furniture = partial(_furniture, header=header, footer=footer)
    document.addPageTemplates([PageTemplate(id="page", frames=[frame], onPage=furniture)])
    document.build(story)


_REVENUE = [
    ("Region", "2023", "2024", "2025", "Change", "What moved it"),
    ("Nordics", "6.1", "6.8", "7.9", "+16%", "Norwegian river network renewed, 212 stations"),
    ("British Isles", "4.4", "4.9", "5.2", "+6%", "Storm overflow monitoring at 61 outfalls"),
    ("Benelux", "5.0", "5.6", "6.7", "+20%", "Dutch polder pumping contract signed in March"),
    ("DACH", "7.2", "7.0", "7.4", "+6%", "Groundwater loggers for three Länder"),
    ("Iberia", "1.9", "2.3", "3.1", "+35%", "Drought early-warning pilot on the Guadalquivir"),
    ("Italy", "2.2", "2.1", "2.0", "-5%", "Venice tide gauges delivered late, invoiced in 2026"),
    ("France", "3.8", "4.1", "4.4", "+7%", "Loire flood forecast stations"),
    ("Baltics", "0.9", "1.2", "1.4", "+17%", "Curonian Lagoon water quality buoys"),
    ("North America", "3.3", "4.6", "6.3", "+37%", "Chesapeake oyster reef programme"),
    ("Rest of world", "1.2", "1.5", "1.8", "+20%", "Distributors in Chile and New Zealand"),
]

_RISKS = [
    ("Risk", "Likelihood", "Effect", "Owner", "What we do about it"),
    ("One supplier of titanium housings", "Medium", "High", "Supply chain", "Second source by June 2026"),
    ("Radio licence changes at 169 MHz", "Low", "High", "Regulatory", "TS-400 radio is software-defined"),
    ("Delayed public tenders", "High", "Medium", "Sales", "Service contracts now 41% of revenue"),
    ("Loss of calibration accreditation", "Low", "High", "Quality", "Yearly rehearsal audit by an assessor"),
    ("Cyber attack on the telemetry gateway", "Medium", "High", "Security", "Signed firmware, mutual TLS, drills"),
    ("Shortage of field engineers", "Medium", "Medium", "People", "Apprentices of two maritime colleges"),
    ("Currency: NOK and USD", "High", "Low", "Finance", "60% of costs in the same currencies"),
    ("Biofouling on the optical heads", "Medium", "Medium", "Research", "UV wiper in pilot at eleven sites"),
    ("Battery transport rules", "Medium", "Low", "Logistics", "LiFePO4 packs certified to UN 38.3"),
    ("Patent dispute over the radar horn", "Low", "Medium", "Legal", "Freedom-to-operate opinion renewed"),
]


def _annual_report() -> list[Flowable]:
    quarters = [
        (
            "First quarter",
            "Ice on the Glomma kept crews indoors until late February, so the quarter began with repairs rather than new "
            "sites. The polder pumping contract in the Netherlands, worth 2.3 million euros over four years, was signed on 14 "
            "March.",
        ),
        (
            "Second quarter",
            "We shipped the first 140 production units of the TS-400 station. Two firmware faults were found in the field and "
            "corrected over the air within nine days; no unit had to be recalled.",
        ),
        (
            "Third quarter",
            "A dry summer emptied order books in southern Europe of flood work and filled them with drought work. The "
            "Guadalquivir pilot measured soil moisture at 84 orchards and cut irrigation by 11 percent.",
        ),
        (
            "Fourth quarter",
            "Storm Ingunn was the largest test the network has seen: 1,904 stations reported through the night and the "
            "gateway delivered 99.97 percent of readings within five minutes.",
        ),
    ]
    story: list[Flowable] = [_heading("Annual Report 2025"), _heading("Letter from the managing director", 2)]
    story += _body(
        "Tidewater Instruments measures water: how high it stands, how fast it runs, what is dissolved in it. In 2025 our "
        "stations took 1.3 billion readings in nineteen countries, and 312 people earned their living by keeping them "
        "honest.",
        "Revenue rose to 46.2 million euros from 40.1 million the year before, an increase of 15 percent. Operating "
        "profit was 5.9 million euros, or 12.8 percent of revenue. We spent 6.4 million euros on research, more than in "
        "any earlier year.",
        "Two things did not go well. The Venice tide gauges were delivered eleven weeks late because a supplier of "
        "titanium housings failed its pressure test twice. And our customer portal was unavailable for six hours in May; "
        "the review of that outage is published, unedited, in the engineering handbook.",
        "We enter 2026 with orders of 29 million euros, a second supplier of housings, and a promise to answer every "
        "support request from a flood authority within fifteen minutes, day and night.",
    )
    story.append(_heading("The year by quarters", 2))
    for name, text in quarters:
        story += [_heading(name, 3), *_body(text)]
    story.append(_heading("Revenue by region", 2))
    story += _body("Amounts are millions of euros. Service contracts are counted where the station stands.")
    story += [_table(_REVENUE), Spacer(1, 6 * mm)]
    story.append(_heading("Balance sheet in brief", 2))
    story += _body(
        "Cash at the end of the year was 8.7 million euros. The loan for the Drammen calibration basin was repaid in "
        "October, two years early, and the company has no bank debt. Stock rose to 7.1 million euros because we now hold "
        "six months of radio modules, a lesson of the shortage of 2022.",
        "The board proposes a dividend of 1.20 euros a share and a bonus of one month's pay for every employee.",
    )
    story.append(_heading("Principal risks", 2))
    story += _body("The board reviews this register every quarter; likelihood and effect are judged over three years.")
    story += [_table(_RISKS), Spacer(1, 6 * mm)]
    story.append(_heading("Outlook", 2))
    story += _body(
        "We expect revenue between 50 and 53 million euros in 2026. The largest uncertainty is the timing of the "
        "Norwegian groundwater tender, which would add 4 million euros if it is decided before the summer.",
        "The next report will for the first time state the carbon footprint of each product, measured from the mine to "
        "the river.",
    )
    return story


_SENSOR_LIMITS = [
    ("Sensor", "Range", "Accuracy", "Warm-up", "Service interval"),
    ("Radar level RL-26", "0.2 to 40 m", "2 mm", "1 s", "24 months"),
    ("Pressure level PL-10", "0 to 10 m", "0.05% of range", "none", "12 months"),
    ("Pressure level PL-70", "0 to 70 m", "0.05% of range", "none", "12 months"),
    ("Velocity DV-3", "0.02 to 6 m/s", "1% or 5 mm/s", "4 s", "18 months"),
    ("Conductivity CX-2", "0 to 100 mS/cm", "0.5%", "2 s", "6 months"),
    ("Turbidity TB-5", "0 to 4000 NTU", "2% or 0.3 NTU", "8 s", "3 months"),
    ("Dissolved oxygen DO-8", "0 to 25 mg/l", "0.1 mg/l", "30 s", "6 months"),
    ("pH electrode PH-4", "pH 0 to 14", "0.05 pH", "20 s", "2 months"),
    ("Nitrate NU-1 (UV)", "0 to 100 mg/l", "0.5 mg/l", "45 s", "3 months"),
    ("Chlorophyll CF-6", "0 to 400 ug/l", "3%", "10 s", "3 months"),
    ("Temperature TT-1", "-5 to 50 C", "0.05 C", "none", "36 months"),
    ("Rain gauge RG-200", "0 to 600 mm/h", "2% to 50 mm/h", "none", "6 months"),
]

_FAULT_CODES = [
    ("Code", "Part", "Meaning", "Remedy", "Visit needed"),
    ("E01", "Power", "Supply voltage below 10.8 V", "Clean the panel; new battery after 5 years", "Yes"),
    ("E02", "Power", "Supply voltage above 16 V", "Disconnect the panel, replace controller CC-7", "Yes"),
    ("E05", "Clock", "Clock not set", "Check the antenna cable; set the clock from the app", "Yes"),
    ("E07", "Memory", "Memory card missing", "Reseat the card until it clicks", "Yes"),
    ("E08", "Memory", "Memory card full", "Upload by cable, then clear E12 first", "Yes"),
    ("E12", "Radio", "No mobile network", "Check the SIM; choose band 20 in rural areas", "No"),
    ("E13", "Radio", "Gateway refused the certificate", "Set the clock, then renew", "No"),
    ("E17", "Enclosure", "Enclosure humidity above 70%", "Dry the box, change desiccant DS-2", "Yes"),
    ("E21", "Radar", "Radar: no echo", "Clean the horn; set the foam filter to 3", "Yes"),
    ("E22", "Radar", "Radar: echo too strong", "Move the arm 0.5 m", "Yes"),
    ("E31", "Level", "Pressure sensor drift", "Change the vent filter, zero the sensor in air", "Yes"),
    ("E34", "Flow", "Velocity: signal too weak", "Lengthen the averaging to 60 s", "No"),
    ("E41", "Chemistry", "Conductivity out of range", "Submerge, then brush with 5% citric acid", "Yes"),
    ("E44", "Optics", "Turbidity lamp weak", "New lamp TL-5, calibrate with formazine", "Yes"),
    ("E47", "Optics", "Wiper stalled", "Plastic scraper, never metal", "Yes"),
    ("E52", "Chemistry", "pH slope below 85%", "New electrode; they last 14 months", "Yes"),
    ("E58", "Chemistry", "Oxygen cap expired", "Fit cap DO-C and type in its code", "Yes"),
    ("E61", "Bus", "Two sensors share an address", "Give the new one a free address", "Yes"),
    ("E66", "Bus", "Sensor bus short circuit", "Unplug one by one until E66 clears", "Yes"),
    ("E73", "Firmware", "Firmware signature invalid", "Repeat; the old firmware keeps running", "No"),
    ("E90", "Firmware", "Restarted by the watchdog", "Send the log to support; note the date", "No"),
]


def _field_manual() -> list[Flowable]:
    story: list[Flowable] = [_heading("TS-400 Field Manual"), _heading("1 Before you leave", 2)]
    story += _body(
        "The TS-400 is a solar powered station that reads up to sixteen sensors and reports through the mobile network. A "
        "crew of two installs one in about three hours. Read this chapter in the office: most second visits are caused by "
        "something left on a shelf.",
        "Pack the station, the mast in three parts, the sensor arm, the battery (11 kg, carried separately), the torque "
        "wrench set to 12 Nm, desiccant bags, and the laminated site sheet. Charge the battery to at least 13.1 V the "
        "evening before.",
        "Call the river authority on the number of the site sheet at least one hour before work begins. Never work in or "
        "above running water alone, and always wear the 150 N life vest.",
    )
    story += [_heading("2 Choosing the place", 2), _heading("2.1 Radar level", 3)]
    story += _body(
        "The radar beam opens at twelve degrees. At a height of ten metres it covers a circle of 2.1 metres, and nothing "
        "but water may lie inside it. Keep away from bridge piers, from outfalls and from reeds that will grow in June.",
        "Mount the horn level within one degree. The bubble on the arm is accurate enough; the app shows the tilt as well.",
    )
    story.append(_heading("2.2 Submerged sensors", 3))
    story += _body(
        "Choose a place that is deeper than 0.4 metres at low water, out of the main current, and that can be reached "
        "without a boat. Turbidity and chlorophyll heads look downstream, so that drifting leaves slide off the window.",
    )
    story.append(_heading("2.3 Sun and radio", 3))
    story += _body(
        "The panel needs four hours of direct sun on the shortest day or it will report E01 in January. Check the signal "
        "with the app before drilling: below minus 110 dBm choose the tall antenna.",
    )
    story.append(_heading("3 Installing", 2))
    story += _body(
        "Drill four holes of 14 millimetres, 120 millimetres deep, and blow them clean. Set the anchors, raise the mast "
        "and tighten the foot to 45 Nm. Earth the mast with 16 square millimetres of copper; lightning has destroyed "
        "three stations that were not.",
        "Hang the enclosure with its door facing north. Connect the sensors first, then the battery, and the solar panel "
        "last. The green lamp blinks twice a second while the station starts and once a minute when it is measuring.",
        "Open the app, hold the phone against the lid, and choose 'Commission'. The station measures for ten minutes, "
        "sends a test message and waits for the gateway. Do not leave before the app says 'Confirmed by gateway'.",
    )
    story.append(_heading("4 Limits of the sensors", 2))
    story += [_table(_SENSOR_LIMITS), Spacer(1, 5 * mm)]
    story += _body(
        "Accuracy holds between 0 and 40 degrees Celsius after the warm-up stated. The service interval assumes a river "
        "of moderate growth; halve it in harbours and in any water warmer than 22 degrees for more than eight weeks a "
        "year.",
    )
    story.append(_heading("5 Yearly service", 2))
    story += _body(
        "Photograph the site before you touch anything. Compare the level with the staff gauge; a difference of more than "
        "10 mm is reported, not corrected, because the hydrologist decides whether the gauge or the sensor has moved.",
        "Clean every optical window with the soft cloth and distilled water. Change the desiccant even if it is still "
        "orange. Update the firmware last, and stay until one message has arrived with the new version number.",
    )
    story.append(_heading("6 Fault codes", 2))
    story += _body("The display shows the oldest unsolved code first. Codes above E70 are cleared by the gateway, not on site.")
    story += [_table(_FAULT_CODES), Spacer(1, 5 * mm), _heading("7 Taking a station down", 2)]
    story += _body(
        "Disconnect the solar panel first and the battery last. Upload the memory card before anything is unplugged: "
        "readings of the last hour are only there. Batteries travel in the grey box with the terminals covered.",
        "Leave the anchors flush with the ground, photograph the place again, and tell the authority that you are off the water.",
    )
    return story


_CLASSES = [
    ("Class", "Examples", "Where it may be stored", "Who may see it", "Kept for"),
    ("Public", "Data sheets, published levels", "Anywhere", "Everyone", "While useful"),
    ("Internal", "Handbook, meeting notes, price lists", "Company workspace", "Employees", "5 years"),
    ("Confidential", "Contracts, customer site plans", "Restricted folders", "Named groups", "10 years"),
    ("Secret", "Signing keys, personal health data", "Vault only, encrypted", "Named persons", "As the law requires"),
]

_CONTROLS = [
    ("No.", "Control", "Applies to", "Checked by", "How often"),
    ("C-01", "Full disk encryption on laptops", "Everyone", "Device management", "Daily"),
    ("C-02", "Screen locks after five minutes", "Everyone", "Device management", "Daily"),
    ("C-03", "Security key for sign-in from outside", "Everyone", "Identity provider", "Each sign-in"),
    ("C-04", "Passwords of 14 characters, never reused", "Everyone", "Password manager report", "Monthly"),
    ("C-05", "Administrator rights for eight hours", "Engineers", "Access log review", "Weekly"),
    ("C-06", "Access reviewed at a change of team", "Managers", "People team", "Each change"),
    ("C-07", "Accounts closed within two hours of leaving", "People team", "Identity provider", "Each leaver"),
    ("C-08", "Two reviewers for changes to the gateway", "Gateway team", "Repository rules", "Each change"),
    ("C-09", "Critical dependency findings fixed in 72 h", "Engineers", "Build system", "Each build"),
    ("C-10", "Firmware signed with the offline key", "Firmware team", "Release manager", "Each release"),
    ("C-11", "Station certificates renewed yearly", "Operations", "Gateway report", "Monthly"),
    ("C-12", "Backups encrypted and restored as a test", "Operations", "Restore log", "Quarterly"),
    ("C-13", "Customer data stays in the EU or EEA", "Operations", "Region report", "Monthly"),
    ("C-14", "Logs of the gateway kept for 400 days", "Operations", "Retention report", "Quarterly"),
    ("C-15", "Penetration test by an outside firm", "Security", "Board", "Yearly"),
    ("C-16", "Phishing exercise with feedback", "Everyone", "Security", "Twice a year"),
    ("C-17", "Visitors accompanied and badged", "Offices", "Reception", "Daily"),
    ("C-18", "Calibration basin locked outside hours", "Drammen", "Site manager", "Daily"),
    ("C-19", "Papers of class Confidential shredded", "Offices", "Office managers", "Weekly"),
    ("C-20", "Suppliers assessed before they get data", "Purchasing", "Security", "Each contract"),
    ("C-21", "Incident drill with the flood desk", "Operations", "Security", "Quarterly"),
    ("C-22", "Lost devices reported within one hour", "Everyone", "Support desk", "Each case"),
]


def _security_policy() -> list[Flowable]:
    story: list[Flowable] = [_heading("Information Security Policy"), _heading("Purpose and scope", 2)]
    story += _body(
        "People decide whether to open a weir or to empty a hospital on the strength of our readings. This policy "
        "protects those readings, the people who work here and the customers who trust us. It binds every employee, "
        "contractor and supplier who handles our information, in the office, at home and in the field.",
        "It was approved by the board on 12 January 2026 and is reviewed every January. Version 4.2 replaces version 4.1; "
        "the change is control C-22 and the shorter time to close accounts in C-07.",
    )
    story.append(_heading("Principles", 2))
    story += _body(
        "Integrity comes first: a wrong reading is worse than a missing one, so a station that doubts itself must say so. "
        "Availability comes second, because a flood does not wait. Confidentiality comes third, yet site plans and "
        "personal data are never shared for convenience.",
        "Nobody is punished for reporting a mistake of their own. Hiding one is another matter.",
    )
    story.append(_heading("Classes of information", 2))
    story += _body("Every document carries one of four classes. A document without a class is treated as Internal.")
    story += [_table(_CLASSES), Spacer(1, 5 * mm), _heading("Access", 2), _heading("Joining and leaving", 3)]
    story += _body(
        "Access follows the role and is granted by the manager of the team that owns the system. When a person leaves, "
        "accounts are closed within two hours and devices are returned within five working days.",
    )
    story.append(_heading("Working away from the office", 3))
    story += _body(
        "Use the company laptop, keep it with you, and never connect a customer's memory card to it: the reading station "
        "in each depot exists for that. Public wireless networks are acceptable, since every service demands mutual TLS.",
    )
    story.append(_heading("Personal devices", 3))
    story += _body("A personal phone may hold mail and the field app in the managed profile, and nothing else.")
    story.append(_heading("Incidents", 2))
    story += _body(
        "An incident is anything that might have exposed, changed or destroyed information. Call the flood desk at any "
        "hour on extension 4400; do not write an e-mail and wait. The desk opens a record, names a lead and informs the "
        "data protection officer, who decides within 24 hours whether the authority must be told. The law allows 72 "
        "hours.",
        "Within ten working days the lead publishes a review without blame: what happened, what we saw, what we will "
        "change and by when.",
    )
    story.append(_heading("Register of controls", 2))
    story += _body("The security team reports the state of every control to the board each quarter.")
    story += [_table(_CONTROLS), Spacer(1, 5 * mm), _heading("Exceptions", 2)]
    story += _body(
        "An exception is asked for in writing, names its end date, and is granted by the head of security for at most 90 "
        "days. There are five open exceptions at the time of writing, all of them for laboratory instruments that cannot "
        "be encrypted.",
    )
    return story


def build(folder: Path) -> list[Path]:
    """Writes the samples under ``folder`` and returns their paths."""
    reports, manuals, policies = (folder / name for name in ("reports", "manuals", "policies"))
    for directory in (reports, manuals, policies):
        directory.mkdir(parents=True, exist_ok=True)
    annual, manual, policy = (
        reports / "annual-report-2025.pdf",
        manuals / "ts-400-field-manual.pdf",
        policies / "security-policy.pdf",
    )
    _write(
        annual,
        title="Annual Report 2025",
        header="Tidewater Instruments - Annual Report 2025",
        footer="Published 3 February 2026",
        story=_annual_report(),
    )
    _write(
        manual,
        title="TS-400 Field Manual",
        header="TS-400 Field Manual, revision 7",
        footer="Tidewater Instruments, Drammen",
        story=_field_manual(),
    )
    _write(
        policy,
        title="Information Security Policy",
        header="Information Security Policy 4.2",
        footer="Class: Internal",
        story=_security_policy(),
    )
    broken = folder / "broken.pdf"
    content = policy.read_bytes()
    broken.write_bytes(content[: len(content) // 3])
    return [annual, manual, policy, broken]


if __name__ == "__main__":
    for written in build(Path(sys.argv[1]) if len(sys.argv) > 1 else _SAMPLES):
        sys.stdout.write(f"{written} {written.stat().st_size} bytes\n")
