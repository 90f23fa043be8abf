"""The servers of one benchmark, all up at the same time, so that rounds can go from one to the next."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import team
from load import Measured, Served, h2load, serve_echo
from plan import ECHO, Place, Plan, Round

from mobd.v1 import bridge_pb2, common_pb2

ECHO_PATH = "/bench.Echo/Echo"
DELIVER_PATH = "/mobd.v1.BridgeService/Deliver"
IN_FLIGHT = 64
MEMBERS = 100
# Each server is called so often before anything counts, and that tells how many calls make up a round.
WARM_UP = 2_000
UVLOOP = " uvloop"


class Ground:
    """Echoes and servers by the name of their cell, and the sites that outlive the servers."""

    def __init__(self, plan: Plan, place: Place) -> None:
        self.plan = plan
        self.place = place
        self.echoes: dict[str, Served] = {}
        self.servers: dict[str, team.Running] = {}
        self.sites: dict[str, team.Site] = {}
        self._rates: dict[str, float] = {}
        self._echo_body = deliver_body(place.folder / "echo.bin", "echo")

    @property
    def warm_up(self) -> int:
        """How many calls a warm-up has."""
        return WARM_UP if self.plan.seconds else IN_FLIGHT

    def load(
        self, served: Served, path: str, data: Path, count: int, in_flight: int = IN_FLIGHT, calls: int = 1
    ) -> Measured:
        """Load one server; every request counts for `calls`."""
        found = h2load(served, path, data, self.place.stamp, count, in_flight)
        found.per_second *= calls
        found.loop_us /= calls
        found.others_us /= calls
        return found

    def warm(self, cell: str, served: Served, path: str, data: Path, in_flight: int = IN_FLIGHT) -> None:
        """Warm a server up, and remember how fast it was."""
        count = max(in_flight, self.warm_up if path != ECHO_PATH else self.warm_up // 2)
        self._rates[cell] = self.load(served, path, data, count, in_flight).per_second

    def count(self, cell: str, least: int = IN_FLIGHT) -> int:
        """Return how many calls make up a round of a cell that was warmed up."""
        return self.plan.count(self._rates[cell], least)

    def echo_with(self, connections: int) -> dict[str, float]:
        """Measure the echo on asyncio over another number of connections, with as much in flight."""
        served, count = self.echoes[ECHO], self.count(ECHO)
        found = h2load(served, ECHO_PATH, self._echo_body, self.place.stamp, count, IN_FLIGHT, connections=connections)
        return found.numbers()

    def echo_round(self) -> Round:
        """Measure the echoes."""
        found = {}
        for cell, served in self.echoes.items():
            if cell not in self._rates:
                self.warm(cell, served, ECHO_PATH, self._echo_body)
            found[cell] = self.load(served, ECHO_PATH, self._echo_body, self.count(cell)).numbers()
        return found


def deliver_body(path: Path, mob_id: str, members: int = MEMBERS, prefix: str = "") -> Path:
    """Write the body of a Deliver to `members` members in turn."""
    return team.body_at(path, mob_id, members, prefix)


def batch_body(path: Path, mob_id: str, each: int, members: int, one: str | None = None) -> Path:
    """Write the body of a DeliverBatch of `each` deliveries, to `members` members in turn or to one."""
    delivery = bridge_pb2.Delivery(
        member_id=one or "m" + "#" * len(str(members - 1)),
        input_id=team.MARK,
        content=common_pb2.Content(blocks=[common_pb2.Block(text=team.TEXT)]),
    )
    path.write_bytes(
        team.framed(bridge_pb2.DeliverBatchRequest(mob_id=mob_id, deliveries=[delivery] * each)),
    )
    return path


@contextmanager
def prepared(
    plan: Plan,
    place: Place,
    *,
    uvloop: bool,
    stores: Sequence[str] | None = None,
    make: Callable[[team.Site], None] = lambda _: None,
) -> Iterator[Ground]:
    """Start the echoes, and a server for each store; with `uvloop` each also on uvloop. Kill them at the end.

    `make` fills a site's database before its server starts.
    """
    ground = Ground(plan, place)
    loops = ["asyncio", "uvloop"] if uvloop and plan.uvloop else ["asyncio"]
    with ExitStack() as stack:
        for loop in loops:
            suffix = UVLOOP if loop == "uvloop" else ""
            echo = serve_echo(loop)
            stack.callback(echo.kill)
            ground.echoes[ECHO + suffix] = echo
            for store in stores or plan.stores:
                site = team.Site(place.folder, store, place.cluster)
                ground.sites[store + suffix] = site
                make(site)
                ground.servers[store + suffix] = stack.enter_context(site.serving(loop=loop))
        yield ground
