"""Style sheet of `report.html`, kept in Python so that packaging cannot lose it."""

STYLE = """\
:root { --ink: #1f2933; --faint: #d5dbe1; --soft: #f5f7f9; --accent: #0072b2; --warm: #fff6e5; --warm-edge: #e69f00; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; padding-bottom: .3rem; border-bottom: 1px solid var(--faint); }
h3 { font-size: 1rem; margin: 1.2rem 0 .5rem; }
ul { margin: .3rem 0; padding-left: 1.3rem; }
li { margin: .2rem 0; }
img { display: block; height: auto; max-width: 100%; margin: .4rem 0; }
img.narrow { width: 780px; }
.warnings { background: var(--warm); border-left: 4px solid var(--warm-edge); padding: .6rem 1rem; margin: 1rem 0; }
.warnings h3 { margin: 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .35rem .65rem .35rem 0; }
th, td { border-bottom: 1px solid var(--faint); }
.numbers td { white-space: nowrap; }
th { font-weight: 600; vertical-align: bottom; }
.note { font-size: .85rem; color: #52606d; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--accent); }
pre { background: var(--soft); padding: 1rem; overflow-x: auto; font-size: .82rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .3rem 0; font-size: .88rem; }
dt { color: #52606d; }
dd { margin: 0; overflow-wrap: anywhere; }
"""
