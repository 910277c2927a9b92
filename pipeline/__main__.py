"""`python -m pipeline`: the guidance stages."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
