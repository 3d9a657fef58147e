"""How processes find each other, and what a run does when one of them ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch import distributed

from tests.conftest import CONFIG
from vitdense.checkpoints.run import read_checkpoint
from vitdense.distributed.agreement import on_all, on_first
from vitdense.distributed.processes import first_host, lost_processes_explained, read_slurm, restarted_since
from vitdense.errors import ConfigError, DiskError, ResourceError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ('hosts', 'first'),
    [('gpu7', 'gpu7'), ('gpu7,gpu9', 'gpu7'), ('gpu[03-05,9],login', 'gpu03'), ('r[1-2]n4.cluster,x', 'r1n4.cluster')],
)
def test_the_first_host_of_a_slurm_list(hosts, first):
    assert first_host(hosts) == first


def test_a_list_of_hosts_that_cannot_be_read_is_an_error():
    with pytest.raises(ConfigError, match='MASTER_ADDR'):
        first_host('')


def test_a_task_of_srun_becomes_a_process_of_the_run():
    task = {'SLURM_STEP_NUM_TASKS': '16', 'SLURM_PROCID': '9', 'SLURM_LOCALID': '1', 'SLURM_JOB_ID': '1234567'}
    task['SLURM_STEP_NODELIST'] = 'gpu[03-04]'
    read_slurm(task)
    assert [task[key] for key in ('RANK', 'LOCAL_RANK', 'WORLD_SIZE')] == ['9', '1', '16']
    assert (task['MASTER_ADDR'], task['MASTER_PORT']) == ('gpu03', '34567')


@pytest.mark.parametrize('more', [{'RANK': '0'}, {'SLURM_STEP_NUM_TASKS': '1'}, {'SLURM_NTASKS': '16'}])
def test_torchrun_within_slurm_and_scripts_without_srun_stay_as_they_are(more):
    task = {'SLURM_PROCID': '0', 'SLURM_JOB_ID': '1'} | more
    before = dict(task)
    read_slurm(task)
    assert task == before


def test_a_restart_by_torchrun_is_known_with_the_time_of_its_start(monkeypatch):
    assert restarted_since() is None
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '0')
    assert restarted_since() is None
    monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '2')
    assert restarted_since() == psutil.Process(os.getppid()).create_time()


def _agree(rank: int) -> list[str]:
    """Return what three ranks agree on, and how the loss of one of them is explained to the others."""
    actual = [str(on_first(lambda: rank)), str(on_all(lambda: rank))]

    def write() -> None:
        if rank == 1:
            raise DiskError('no room', where='rank 1', fix='make some')

    try:
        on_all(write)
    except DiskError as error:
        actual.append(error.where)
    if rank == 2:
        distributed.destroy_process_group()
        return actual
    try:
        with lost_processes_explained():
            distributed.all_reduce(torch.ones(1))
    except ResourceError as error:
        actual.append(error.message)
    distributed.destroy_process_group()
    return actual


def test_ranks_raise_errors_together_and_know_when_one_is_lost(run_ranks):
    first, second, third = run_ranks(_agree, size=3)
    assert third == ['0', '[0, 1, 2]', 'rank 1']
    assert first == second == [*third, 'another process of the run has ended']


FAULT = '''
import os, signal
from pathlib import Path
from mmengine.hooks import Hook
from vitdense.errors import DataError


class Fault(Hook):
    """In one rank: an error, or kill -9 in the first life of the process."""

    def __init__(self, rank, step, kind):
        self.rank, self.step, self.kind = rank, step, kind

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank != self.rank or batch_idx != self.step:
            return
        Path(__file__).with_name('died').touch()
        if self.kind == 'error':
            raise DataError('the image of rank 1', where='here', fix='mend it')
        if os.environ['TORCHELASTIC_RESTART_COUNT'] == '0':
            os.kill(os.getpid(), signal.SIGKILL)
'''


def torchrun(folder: Path, name: str, *options: str, hook: str = '', restarts: int = 0) -> tuple[int, str, float]:
    """Return exit code and output of a run of two processes, and the time at which the last of them had ended."""
    (folder / 'fault.py').write_text(FAULT)
    (folder / f'{name}.py').write_text(f'{CONFIG}\n{hook}')
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node=2']
    command += [f'--max-restarts={restarts}', str(ROOT / 'tools/train.py'), str(folder / f'{name}.py')]
    command += ['--work-dir', str(folder / name), '--device', 'cpu', '--cfg-options', 'checkpoint.interval=2', *options]
    more = {'PYTHONPATH': f'{ROOT}:{folder}', 'OMP_NUM_THREADS': '1', 'GLOO_SOCKET_IFNAME': 'lo'}
    pipe, joined = subprocess.PIPE, subprocess.STDOUT
    agent = subprocess.Popen(command, env={**os.environ, **more}, text=True, stdout=pipe, stderr=joined)
    lines, ended = [], 0.0
    for line in agent.stdout:  # ends with the last process that holds it
        lines.append(line)
        if 'failed (exitcode' in line:  # logged by torchrun once it has ended them all
            ended = time.time()
    return agent.wait(), ''.join(lines), ended


@pytest.mark.slow
@pytest.mark.parametrize('parallel', ['ddp', 'fsdp'])
def test_a_rank_that_fails_ends_all_and_its_error_comes_first(tmp_path, parallel):
    hook = "custom_hooks = [dict(type='fault.Fault', rank=1, step=3, kind='error')]"
    code, output, ended = torchrun(tmp_path, 'run', f'parallel={parallel}', hook=hook)
    assert code == 1 and 0 < ended - (tmp_path / 'died').stat().st_mtime < 30
    own, other = output.index('the image of rank 1'), output.index('another process of the run has ended')
    assert own < other and 'Traceback' not in output[: output.index('failed (exitcode')]  # torchrun's own is below
    words = [word for process in psutil.process_iter(['cmdline']) for word in process.info['cmdline'] or ()]
    assert not [word for word in words if str(tmp_path) in word]


@pytest.mark.slow
@pytest.mark.parametrize('parallel', ['ddp', 'fsdp'])
def test_a_killed_rank_is_started_again_and_the_run_ends_as_one_without_the_kill(tmp_path, parallel):
    hook = "custom_hooks = [dict(type='fault.Fault', rank=1, step=5, kind='kill')]"
    code, output, _ = torchrun(tmp_path, 'killed', f'parallel={parallel}', hook=hook, restarts=1)
    assert code == 0 and 'going on from' in output and 'step 4' in output
    code, output, _ = torchrun(tmp_path, 'whole', f'parallel={parallel}')
    assert code == 0
    name = f'step_000008.{"shards" if parallel == "fsdp" else "pth"}'
    killed, whole = (read_checkpoint(tmp_path / run / name) for run in ('killed', 'whole'))
    for key in ('state_dict', 'training_state_dict'):
        assert all(torch.equal(value, whole[key][name]) for name, value in killed[key].items())
