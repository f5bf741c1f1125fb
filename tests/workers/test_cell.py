from vla_rl.ipc.counters import CellCounters
from vla_rl.workers.cell import Cell, CellLimits


class IdleProcess:
    name = "inference_worker"
    exitcode = None

    def is_alive(self):
        return False

    def join(self, timeout):
        pass


def test_the_time_an_inference_worker_has_to_start_begins_with_its_start(monkeypatch):
    monkeypatch.setattr(Cell, "_spawn", lambda *_: IdleProcess())
    with CellCounters.create(num_env_workers=1) as counters:
        cell = Cell(
            inference=None,
            env_workers=[],
            slots=None,
            counters=counters,
            mailbox=None,
            frozen=None,
            ring=None,
            limits=CellLimits(step_timeout_s=60.0, start_timeout_s=60.0, max_restarts=0),
            on_episode=lambda record: None,
        )
        counters.set("inference_heartbeat", -1000.0)  # the learner took long to be built
        counters.request_stop()
        cell.start()
        assert counters.silent_seconds("inference_heartbeat") < 60.0
        cell.close()
