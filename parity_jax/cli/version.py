"""What decides numbers beside a config: versions, the commit and the device.

parity-jax --version
"""

import importlib.metadata
import platform
from collections.abc import Sequence

from parity_jax.cli.arguments import Parser, reading
from parity_jax.runs.lineage import this_process


def main(argv: Sequence[str]) -> None:
    """Print them in one line."""
    Parser("--version", __doc__).parse_args(argv)
    with reading():
        process = this_process()
    own = f"parity_jax {importlib.metadata.version('parity-jax')}"
    commit = f" (commit {process.commit})" if process.commit else ""
    packages = [f"{name} {version}" for name, version in process.packages.items()]
    python = f"python {platform.python_version()}"
    print(", ".join([own + commit, python, *packages, process.device]))
