"""docs/operating.md: commands that no other test runs."""

from contextlib import ExitStack
from pathlib import Path

from standin import Standin
from tests.deploy.manual import commands
from tests.deploy.tools import free_ports, needs, ran, running
from tests.fixtures import Service, new_events, new_id, started


@needs("redis-server", "redis-cli")
def test_wrong_answer_goes(upstream: Standin, tmp_path: Path) -> None:
    """The manual's command and a restart remove an event's old answer everywhere.

    That is from all instances that share answers. No other event's answer is removed.
    """
    (redis_port,) = free_ports(1)
    redis = ["redis-server", "--port", f"{redis_port}", "--save", ""]
    environ = {"C42_CACHE_URL": f"redis://127.0.0.1:{redis_port}"}
    event_id, (other_id,) = new_id(), new_events(upstream, 1)
    upstream.add_event(event_id, title="old")

    with ExitStack() as stack:
        stack.enter_context(running(*redis, "--dir", tmp_path, ports=[redis_port]))

        def restart() -> list[Service]:
            services = [Service(upstream, (), **environ) for _ in range(2)]
            return [stack.enter_context(started(service)) for service in services]

        for service in restart():
            assert service.event(event_id).json()["title"] == "old"
            assert service.event(other_id).status_code == 200
        upstream.set_title(event_id, "new")

        def stored(wanted: str) -> list[str]:
            listed = ran("redis-cli", "-p", f"{redis_port}", "keys", f"c42c:*{wanted}*")
            return listed.split()

        assert stored(event_id)
        command = commands("A wrong answer must go now").replace("EVENT_ID", event_id)
        command = command.replace("redis-cli", f"redis-cli -p {redis_port}")
        ran("sh", "-ec", command)
        assert stored(event_id) == []
        assert stored(other_id)
        for service in restart():
            assert service.event(event_id).json()["title"] == "new"
