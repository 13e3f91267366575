"""python -m parity_jax.cli: the same as the command `parity-jax`."""

from parity_jax.cli.main import main

if __name__ == "__main__":
    main()
