"""`python -m autolora_eval`."""

from autolora_eval.cli import main

if __name__ == "__main__":
    main()
