"""`python -m gen`: the command line."""

from gen.cli import program

if __name__ == "__main__":
    program()
