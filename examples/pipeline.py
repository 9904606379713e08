"""Two stages that need different lanes: fetching waits, counting words computes.

duodao run examples/pipeline.py:words urls.txt -o words.jsonl
"""

import collections
import re
import urllib.request

import duodao

WORD = re.compile(r"[A-Za-z_]{3,}")


def fetch(url):
    """The text at `url`."""
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read().decode("utf-8", "replace")


def count(text):
    """Its ten most frequent words."""
    return dict(collections.Counter(WORD.findall(text)).most_common(10))


words = duodao.Pipeline(fetch, lane="thread", workers=16, retries=2, timeout=30).then(count, lane="process")
