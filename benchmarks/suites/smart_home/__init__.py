"""Spoken home commands to one line of compact JSON.

README.md tells the task and its rules, `grammar.py` makes the rows. To use them:

    from edgeft.benchmarks.suites import load_suite
    suite = load_suite("smart_home")
"""
