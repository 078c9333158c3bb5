"""What all tests share: programs that compile fast, since almost none of them runs for long."""

import os


def pytest_configure(config):
    """Turns off the costly passes of XLA before JAX is imported, also in processes of tests."""
    # Reproductions run long enough for optimised programs to pay.
    if config.option.markexpr == "not slow":
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
