"""The command `text-embeddings-router`: `bei serve` under TEI's name, so that an image or chart swaps the program only.

Owns what differs between the two: TEI needs a model's name, and listens on port 3000 if nobody says otherwise.
"""

import os
import sys

from openbei import cli

TEI_PORT = 3000


def main(args: list[str] | None = None) -> None:
    """TEI's flags and variables -> a server. Exits as `bei serve` does, and with 2 where no model is named."""
    words = sys.argv[1:] if args is None else args
    if words not in (["--version"], ["-V"]):
        named = any(word.startswith(("--model-id", "-m", "-h", "--help")) for word in words)
        if not named and not os.environ.get("MODEL_ID"):
            print("Error: text-embeddings-router needs --model-id or MODEL_ID", file=sys.stderr)
            sys.exit(2)
        words = words if words[:1] == ["serve"] else ["serve", *words]  # usage texts name it
    words = ["--version"] if words == ["-V"] else words
    cli.main.main(words, prog_name="text-embeddings-router", default_map={"serve": {"port": TEI_PORT}})


if __name__ == "__main__":
    main()
