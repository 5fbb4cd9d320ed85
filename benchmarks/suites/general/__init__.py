"""What a model should still do after a fine-tune on another task: README.md says what is asked.

from edgeft.benchmarks.suites import load_suite
suite = load_suite("general")
"""
