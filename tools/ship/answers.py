"""Record what the shipped networks answer, for `bayesvision doctor`: `python -m tools.ship.answers`."""

import json

from bayesvision.cli.doctor import given_answer, recorded_answers
from bayesvision.io.checkpoints import shipped
from bayesvision.io.tensors import replacing


def main() -> None:
    """Ask every network, and write what they say."""
    answers = {name: given_answer(name) for name in shipped()}
    with replacing(recorded_answers()) as path:
        path.write_text(json.dumps(answers, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {recorded_answers()}: {len(answers)} networks")


if __name__ == "__main__":
    main()
