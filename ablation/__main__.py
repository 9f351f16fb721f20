"""`python -m ablation` is `ablate`, for where another program of that name comes first."""

from ablation.cli import main

if __name__ == "__main__":
    main()
