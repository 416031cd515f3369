"""The same decisions by the workers of a real Dask cluster, and what addresses are taken."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from profiler.profile import BadInput
from solver import spread as spreading
from solver.problem import SolveOptions
from solver.scenario import solve
from tests.solver.test_scenario import fleet, letterlike


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp", host="127.0.0.1"
    ) as cluster:
        yield cluster.scheduler_address


@pytest.mark.parametrize("method", ["card", "exact"])
def test_spread_over_workers_every_figure_is_the_local_one(
    method: str, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spreading, "CHUNK", 100)  # several tasks, the last one short
    for profiles in (letterlike(), fleet()):
        options = SolveOptions(method=method, channel="normal", rounds=171, seed=3)
        here, there = (solve(profiles, o) for o in (options, replace(options, scheduler=scheduler)))
        assert (here.decisions.cut == there.decisions.cut).all()
        assert (here.decisions.frequency_hz == there.decisions.frequency_hz).all()
        assert (here.decisions.cost == there.decisions.cost).all()
        assert (here.optimal_hz == there.optimal_hz).all()
        assert here.summary() == there.summary()
        assert np.array_equal(here.extra_clocks_hz, there.extra_clocks_hz)


@pytest.mark.parametrize(
    "address",
    ["tcp://192.0.2.7:8786", "tcp://example.org:8786", "tcp://127.0.0.1.example.org:8786", "tcp://[2001:db8::1]:80"],
)
def test_plain_tcp_to_another_machine_is_refused_because_the_wire_format_is_pickle(address: str) -> None:
    with pytest.raises(BadInput, match=r"--scheduler .*pickle.*expected tcp://127.0.0.1:PORT \(loopback\) or tls://"):
        solve(fleet(), SolveOptions(scheduler=address))


@pytest.mark.parametrize(
    "address", ["", "8786", "127.0.0.1:8786", "http://127.0.0.1:1", "tcp://127.0.0.1", "tcp://127.0.0.1:x"]
)
def test_what_is_no_address_is_refused_with_what_was_expected(address: str) -> None:
    with pytest.raises(BadInput, match=r"--scheduler .*: expected tcp://127\.0\.0\.1:PORT"):
        solve(fleet(), SolveOptions(scheduler=address))


def test_a_scheduler_that_does_not_answer_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed", reason="Dask is not installed")
    monkeypatch.setattr(spreading, "_TIMEOUT_S", 1)
    with pytest.raises(BadInput, match=r"--scheduler tcp://127\.0\.0\.1:9: no Dask scheduler answers there") as error:
        solve(fleet(), SolveOptions(scheduler="tcp://127.0.0.1:9"))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A certificate that is its own authority, as Dask's configuration names one."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate to speak TLS with")
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = str(folder / "key.pem"), str(folder / "cert.pem")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*made, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    return {"cert": certificate, "key": key}


def test_tls_with_the_certificates_of_dasks_configuration_gives_the_local_answer(certificate: dict[str, str]) -> None:
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    import dask

    tls = {"distributed.comm.tls.ca-file": certificate["cert"]}
    for part in ("client", "scheduler", "worker"):
        tls |= {f"distributed.comm.tls.{part}.{what}": certificate[what] for what in ("cert", "key")}
    with (
        dask.config.set(tls),
        distributed.LocalCluster(
            n_workers=1,
            processes=False,
            dashboard_address=None,
            protocol="tls",
            host="127.0.0.1",
            security=distributed.Security(require_encryption=True),
        ) as cluster,
    ):
        assert cluster.scheduler_address.startswith("tls://")
        here, there = (solve(fleet(), SolveOptions(scheduler=at)) for at in (None, cluster.scheduler_address))
        assert (here.decisions.cost == there.decisions.cost).all()


def test_tls_without_certificates_is_said_in_one_line() -> None:
    pytest.importorskip("distributed", reason="Dask is not installed")
    with pytest.raises(BadInput, match=r"no certificates for TLS, expected ca-file, client\.cert") as error:
        solve(fleet(), SolveOptions(scheduler="tls://127.0.0.1:9"))
    assert "\n" not in str(error.value)
