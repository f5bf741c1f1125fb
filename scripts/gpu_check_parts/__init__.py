"""The parts of `scripts/gpu_check`.

The process that the user starts imports the standard library alone, so that neither a broken driver nor a missing
package can end it: `main` reads the options, `runner` runs every phase in a process of its own, `table` prints what
came of it. Each `measure_*` module is one phase; it is imported in that phase's process only, through `child`.
"""
