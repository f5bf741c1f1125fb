"""Suites in folders of the user: LIBERO-plus, LIBERO-Pro, or definitions of one's own, read without a simulator.

`variant_names` explains LIBERO-plus's names, `definitions` checks a BDDL file, `suite_folder` reads a whole folder, and
`folder_plan` turns it into environments.
"""
