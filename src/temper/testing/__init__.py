"""The conformance suite: what must hold for each technique, runtime, search and solver, as functions to call.

    from temper.testing import runtimes, searches, solvers, techniques

    def test_mine() -> None:
        techniques.check(MyTechnique)

Each check raises AssertionError with a sentence that says what does not hold; none needs a test framework.
"""
