"""What the Makefile calls for more than a line of shell: `python -m scripts.NAME`, from the project's folder."""
