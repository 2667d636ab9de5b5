"""`python -m vqvae2 COMMAND …` -> the same as `vqvae2 COMMAND …`; torchrun starts it in the same way, with -m."""

from vqvae2.commands import main

if __name__ == "__main__":
    main()
