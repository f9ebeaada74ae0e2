"""From a FASTA file to new proteins in four jobs, each of which waits for the one before to succeed."""

import pytest

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import Chain, log_of
from xtrimo.fasta import read_fasta


@pytest.mark.timeout(600)
def test_each_job_follows_the_success_of_the_one_before(cluster: Cluster, chain: Chain) -> None:
    for name in ("corpus", "pretrain", "export"):
        job = getattr(chain, name)
        assert cluster.wait(job).state == "COMPLETED", log_of(chain.folder, name)
    for task in ("1", "2"):
        assert cluster.wait(f"{chain.generate}_{task}").state == "COMPLETED", log_of(chain.folder, "generate")
    records = list(read_fasta(chain.folder / "new.fasta"))
    assert [record.name for record in records] == [f"s{i:04}" for i in range(1, 6)]
