"""Write a thousand stories to a JSONL file, and resume an interrupted run.

    python 02_many_stories.py 1000 stories.jsonl    # default: 20 stories

Stories are generated in batches, which is faster than one by one, and written in order. Line n has
seed n, so the file is the same on every machine and in any number of runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import llama2py

count = int(sys.argv[1]) if len(sys.argv) > 1 else 20
path = Path(sys.argv[2] if len(sys.argv) > 2 else "stories.jsonl")

done = path.read_bytes() if path.exists() else b""
whole = done[: done.rfind(b"\n") + 1]  # an interrupted run may have left an incomplete line
path.write_bytes(whole)
written = whole.count(b"\n")

with llama2py.StoryTeller() as tell, path.open("a", encoding="utf-8") as file:
    stories = tell.many(count - min(written, count), seed=written + 1, max_words=150)
    for story in stories:  # progress=True would show a progress bar
        line = {"seed": story.seed, "title": story.title, "text": story.text}
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        written += 1

print(f"{path}: {written} stories")
