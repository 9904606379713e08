"""The worker of words.go in Python: `count` as a function for lane="process", the file itself as a JSON-lines worker.

duodao map examples/go/words.py:count texts.jsonl
duodao map --protocol jsonl --command 'python3 examples/go/words.py' texts.jsonl
"""

import json
import re
import sys
from collections import Counter

WORD = re.compile(rb"[a-z]+")


def count(text):
    """How many words `text` has, how many of them are distinct, and the five most frequent, then by the alphabet."""
    seen = Counter(WORD.findall(text.encode().lower()))
    top = sorted(seen.items(), key=lambda entry: (-entry[1], entry[0]))[:5]
    return {"words": seen.total(), "distinct": len(seen), "top": [[word.decode(), times] for word, times in top]}


def main():
    """Answer each line of stdin."""
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"output": count(asked["input"])}
        except AttributeError as error:
            answer = {"error": f"a text is needed: {error}"}
        print(json.dumps({"id": asked["id"], **answer}), flush=True)


if __name__ == "__main__":
    main()
