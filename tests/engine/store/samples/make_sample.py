"""Made the samples of schemas beside this: a small real study and its export by the code of one commit.

    git worktree add /tmp/then COMMIT
    cd /tmp/then && bash .ci/link && PYTHONPATH=.linked python make_sample.py /tmp/sample-of-then

Commits before 52cf631 have no name `seedscope` and no such script: there the imports read `from engine import demo`,
`from engine.export import export`, `from engine.studies import run_study`, with the checkout itself on the path.

`schema-6` is of 95ac0a8, `schema-7-first` of 8ff66a4, the first of schema 7, which grew columns afterwards without another number;
`schema-7` has all of its columns (9f1d3a9); `schema-8` is of 3068d38; `schema-9` is of 3b90df5;
`schema-10` has the columns of today. A schema that grows
takes the next number and gets a sample of its own.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from seedscope.engine.demo import stdlib as demo
from seedscope.engine.export.formats import export
from seedscope.engine.progress import Progress
from seedscope.engine.studies.run import run_study

out = Path(sys.argv[1])
root = out / "root"
train = replace(
    demo.STUDY.train, d_sae=24, k=2, seeds=(0, 1, 2), n_tokens=20_000, batch=512, lr=0.03, silent_after=10**9
)
config = replace(
    demo.STUDY, name="sample", ensemble="topk-24", hookpoint="blocks.2.hook_resid_post", n_ctx=64, train=train
)
whole = demo.load_corpus()
corpus = whole._replace(
    train=[document for document in whole.train if 3_000 < len(document[1]) < 20_000][:10],
    held_out=[document for document in whole.held_out if 2_000 < len(document[1]) < 9_000][:1],
)
run_study(config, corpus, root, built_from="tests", loss_tokens=100, progress=Progress(quiet=True))
export(root, "sample", out / "export", format="parquet")
for path in [*root.glob("sample/parts"), *root.glob("sample/sae"), *root.glob("sample/*.index*")]:
    shutil.rmtree(path)
subprocess.run(
    f"tar -c --sort=name --owner=0 --group=0 root export | xz -9e > {out}.tar.xz", shell=True, cwd=out, check=True
)
