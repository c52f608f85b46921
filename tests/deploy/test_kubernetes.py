"""
What deploy/kubernetes says to a cluster.

Proved: the manifests are valid by the schemas of Kubernetes 1.29 and of the newest that the
validator brings, with nothing unknown in them; what they refer to is there; and the pods of
them run by pods.py, a small kubelet, as the users, with the volumes, variables, commands and
probes that the files say, and lose no run at their end. Beside PostgreSQL, a hub included.

Not proved, for want of a cluster: that images can be pulled, that memory and CPU are enough,
what cuts pods off from one another (their networks), and liveness probes over time. This
environment stands in for the image of the service, and a small program for the worker. The
schema of a PodMonitor comes with the operator and is not here: its fields are compared with
those that it is known to have.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import kubernetes_validate
import pytest
import yaml
from click import Context

from builders import until
from containers import ROOT, need_containers
from databases import Postgres
from orbit_rpc_schema.caller import call_http
from orbit_service import past, program
from orbit_service.cli import cli
from orbit_service.history import publisher
from orbit_service.settings import Settings, known_names, warnings
from orbit_service.state import journal
from pods import Node, Pod, reached_by_tcp, service_links

FILES = sorted((ROOT / "deploy" / "kubernetes").glob("*.yaml"))
OLDEST, NEWEST = "1.29", kubernetes_validate.latest_version()
TOKEN = "a-token-of-the-test"
SECRET = "orbit-metrics"
# What a service may take to stop when nothing answers: HTTP, the history, the state.
LONGEST_STOP = (
    program.STOP_SECONDS + past.DRAIN_SECONDS + publisher.STOP_SECONDS + journal.STOP_SECONDS
)

# Records runs until it is told to stop, and says how many; with an argument, so many.
WORKER = """
import signal, sys
from orbit_worker import record_run

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
wanted, runs = [*map(int, sys.argv[1:]), -1][0], 0
while runs != wanted and signal.sigtimedwait({signal.SIGTERM}, 0.002) is None:
    record_run(1, runs % 10 != 0, pipeline="send")
    runs += 1
print("recorded", runs)
"""

# Has ended 50 runs, and does not end the next for anything.
STUBBORN = """
import signal
from orbit_worker import flush, record_run, track

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
for _ in range(50):
    record_run(1, True, pipeline="send")
with track("send"):
    flush()
    signal.sigwait({signal.SIGUSR1})
"""


# ---------------------------------------------------------------- what is written there


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def manifest(file: str, kind: str, name: str | None = None) -> dict[str, Any]:
    """A copy of the one of this kind."""
    [found] = [
        document
        for document in documents(ROOT / "deploy" / "kubernetes" / file)
        if document["kind"] == kind and name in (None, document["metadata"]["name"])
    ]
    return found


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    return document["spec"]["template"]["spec"]


def every(kinds: str) -> list[Any]:
    """The documents of these kinds in all files, each with its place for the test's name."""
    return [
        pytest.param(document, id=f"{path.name}-{document['metadata']['name']}")
        for path in FILES
        for document in documents(path)
        if re.fullmatch(kinds, document["kind"])
    ]


WITH_PODS = every("Deployment|DaemonSet|Job")


def all_containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def variables(container: dict[str, Any]) -> dict[str, Any]:
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in container.get("env", ())}


def is_ours(container: dict[str, Any]) -> bool:
    return container["image"].startswith("orbit-metrics:")


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("document", every("(?!PodMonitor).*"))
def test_a_manifest_is_valid_by_the_schemas_of_kubernetes(document, version):
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda pod: pod.update(initContianers=[]), "initContianers"),
        (lambda pod: pod["containers"][0].update(image=["a"]), "is not of type"),
        (lambda pod: pod["containers"][0].pop("name"), "'name' is a required property"),
        (lambda pod: pod["containers"][0].update(volumeMounts=[{"name": "a"}]), "mountPath"),
    ],
)
def test_a_manifest_with_a_mistake_in_it_is_not_valid(wrong, said):
    document = manifest("sidecar.yaml", "Deployment")
    wrong(pod_of(document))

    with pytest.raises(kubernetes_validate.ValidationError, match=said):
        kubernetes_validate.validate(document, NEWEST, strict=True)


@pytest.mark.parametrize("document", WITH_PODS)
def test_what_a_pod_refers_to_is_in_it(document):
    pod, template = pod_of(document), document["spec"]["template"]
    given = [volume["name"] for volume in pod.get("volumes", ())]
    mounted = [m["name"] for c in all_containers(pod) for m in c.get("volumeMounts", ())]
    ports = {p["name"] for c in all_containers(pod) for p in c.get("ports", ())}

    assert set(mounted) == set(given)
    for container in all_containers(pod):
        names = [variable["name"] for variable in container.get("env", ())]
        assert len(names) == len(set(names))
        for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
            probe = container.get(kind, {})
            assert probe.get("httpGet", {}).get("port", "http") in {"http", *ports}
    for label, value in document["spec"].get("selector", {}).get("matchLabels", {}).items():
        assert template["metadata"]["labels"][label] == value


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_each_key_of_a_secret_that_is_asked_for_is_made_by_the_line_above(path):
    referred = re.findall(rf"{{name: {SECRET}, key: ([\w-]+)", path.read_text())
    described = re.findall(r"--from-literal=([\w-]+)=", path.read_text())

    assert referred
    assert set(referred) <= set(described)


@pytest.mark.parametrize("document", WITH_PODS)
def test_each_setting_of_a_container_is_one(document):
    for container in all_containers(pod_of(document)):
        assert set(variables(container)) <= known_names()


@pytest.mark.parametrize("document", WITH_PODS)
def test_each_command_of_ours_is_one(document):
    for container in filter(is_ours, all_containers(pod_of(document))):
        probes = [container.get(f"{kind}Probe", {}) for kind in ("startup", "liveness")]
        asked = [probe["exec"]["command"] for probe in probes if "exec" in probe]
        own = [] if "command" in container else [["orbit-metrics", *container.get("args", ())]]
        for name, *arguments in asked + own:
            assert name == "orbit-metrics"
            _name, command, rest = cli.resolve_command(Context(cli), arguments or ["serve"])
            command.make_context(name, rest)  # raises for an option that it does not have


@pytest.mark.parametrize("document", WITH_PODS)
def test_a_container_may_do_no_more_than_it_has_to(document):
    for container in all_containers(pod_of(document)):
        context = {**pod_of(document)["securityContext"], **container["securityContext"]}

        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        if is_ours(container):
            assert context["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"].keys() == {"memory"}
        if container["name"] != "folders":  # of the node, which are root's
            assert context["runAsNonRoot"] is True
            assert "add" not in context["capabilities"]


@pytest.mark.parametrize("document", WITH_PODS)
def test_a_pod_needs_neither_links_to_services_nor_an_account(document):
    assert pod_of(document)["enableServiceLinks"] is False
    assert pod_of(document)["automountServiceAccountToken"] is False


@pytest.mark.parametrize(
    ("service", "worker"),
    [
        (("sidecar.yaml", "Deployment"), ("sidecar.yaml", "Deployment")),
        (("job.yaml", "Job"), ("job.yaml", "Job")),
        (("daemonset.yaml", "DaemonSet"), ("daemonset.yaml", "Deployment")),
    ],
)
def test_the_service_admits_the_user_of_the_worker_and_they_meet_in_one_folder(service, worker):
    ours = next(filter(is_allowing, all_containers(pod_of(manifest(*service)))))
    [theirs] = pod_of(manifest(*worker))["containers"]
    uid = theirs["securityContext"]["runAsUser"]

    assert str(uid) in variables(ours)["ORBIT_ALLOW_UIDS"].split(",")
    assert uid != ours["securityContext"]["runAsUser"]
    assert folders(theirs) == {"/run/orbit-metrics"}
    assert folders(ours) == {"/run/orbit-metrics", "/var/lib/orbit-metrics"}


def folders(container: dict[str, Any]) -> set[str]:
    return {mount["mountPath"] for mount in container["volumeMounts"]}


def is_allowing(container: dict[str, Any]) -> bool:
    return "ORBIT_ALLOW_UIDS" in variables(container)


@pytest.mark.parametrize("document", WITH_PODS)
def test_the_grace_is_longer_than_the_service_may_take_to_stop(document):
    grace = pod_of(document)["terminationGracePeriodSeconds"]
    drains = [
        int(variables(container).get("ORBIT_DRAIN_TIMEOUT", 0))
        for container in all_containers(pod_of(document))
    ]

    assert grace > max(drains) + LONGEST_STOP


def test_the_service_of_the_hub_leads_to_the_hub():
    service, hub = manifest("hub.yaml", "Service"), manifest("hub.yaml", "Deployment")
    [container] = pod_of(hub)["containers"]

    labels = hub["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]


def test_the_pod_monitor_finds_the_nodes_and_not_the_hub():
    monitor = manifest("podmonitor.yaml", "PodMonitor")
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    found = [
        document
        for document in (parameter.values[0] for parameter in WITH_PODS)
        if monitor["spec"]["selector"]["matchLabels"].items()
        <= document["spec"]["template"]["metadata"]["labels"].items()
    ]

    assert [d["metadata"]["name"] for d in found] == ["orbit-metrics", "mailer"]
    for document in found:
        ports = [p["name"] for c in all_containers(pod_of(document)) for p in c.get("ports", ())]
        assert ports == [endpoint["port"]]


def test_the_pod_monitor_has_only_fields_that_there_are():
    """As of monitoring.coreos.com/v1 in version 0.80 of the operator."""
    monitor = manifest("podmonitor.yaml", "PodMonitor")
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]

    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert monitor.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert monitor["spec"].keys() == {"selector", "podMetricsEndpoints"}
    assert endpoint.keys() == {"port", "path", "authorization"}
    assert endpoint["authorization"].keys() == {"type", "credentials"}
    assert endpoint["authorization"]["credentials"] == {"name": SECRET, "key": "token"}


def test_the_rules_find_what_the_pod_monitor_has_scraped():
    """The operator calls a job by the namespace and the name of its PodMonitor."""
    rules = (ROOT / "deploy" / "prometheus" / "rules.yml").read_text()
    [pattern] = set(re.findall(r'job=~"([^"]+)"', rules))

    assert re.fullmatch(
        pattern, f"shop/{manifest('podmonitor.yaml', 'PodMonitor')['metadata']['name']}"
    )


@pytest.mark.parametrize("service", ["orbit", "orbit-metrics", "orbit-http", "orbit-socket"])
def test_what_kubernetes_injects_for_a_service_is_no_setting_and_one_warning(service):
    links = service_links(service)

    assert not known_names() & links.keys()
    assert len(warnings(Settings(), links)) == 1


# ---------------------------------------------------------------- run


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    """A node whose secret has the token alone: each pod keeps its own history."""
    need_containers()
    node = Node(tmp_path, {SECRET: {"token": TOKEN}})
    yield node
    node.close()


@pytest.fixture(scope="module")
def hub(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pod]:
    """The hub's pod, which has made the tables, on a node whose secret has the URL as well."""
    need_containers()
    name = "kubernetes"
    folder = Path(postgres.make(name).partition("?host=")[2])
    with reached_by_tcp(folder / ".s.PGSQL.5432") as port:
        url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/{name}"
        secret = {"token": TOKEN, "history-url": url}
        node = Node(tmp_path_factory.mktemp("node"), {SECRET: secret})
        yield node.start("hub-1", pod_of(manifest("hub.yaml", "Deployment")))
        node.close()
    postgres.drop(name)


def worker(*arguments: str) -> list[str]:
    return ["python", "-c", WORKER, *arguments]


def ask(pod: Pod, method: str, **params: Any) -> Any:
    return call_http(pod.url, method, params, token=TOKEN)


def runs(pod: Pod) -> int:
    return ask(pod, "worker.metrics")["totalRuns"]


def recorded(pod: Pod) -> int:
    """What the worker said at its end."""
    found = re.search(r"recorded (\d+)", pod.log("worker"))
    assert found, pod.log("worker")
    return int(found[1])


def last_life(pod: Pod) -> int:
    """The runs of the last life, once it is over."""
    now = until(lambda: None if (m := ask(pod, "worker.metrics"))["connected"] else m)
    return now["lastLife"]["totalRuns"]


def history(hub: Pod, pod: Pod) -> dict[str, Any]:
    """All that the hub knows of a pod's past."""
    groups = ask(hub, "worker.history", **{"from": "-1h", "groupBy": "node"})["groups"]
    return next(group["total"] for group in groups if group["name"] == pod.name)


def scraped(pod: Pod) -> str:
    """What Prometheus reads, as podmonitor.yaml tells it to."""
    [endpoint] = manifest("podmonitor.yaml", "PodMonitor")["spec"]["podMetricsEndpoints"]
    asked = Request(pod.url + endpoint["path"], headers={"Authorization": f"Bearer {TOKEN}"})
    with urlopen(asked, timeout=20) as answer:
        return answer.read().decode()


def test_a_sidecar_tells_what_its_worker_did_and_a_hub_tells_it_when_the_pod_is_gone(hub):
    """Over HTTP with the token of the secret, from the start until after the end."""
    pod = hub.node.start(
        "mailer-1", pod_of(manifest("sidecar.yaml", "Deployment")), worker=worker()
    )
    until(lambda: runs(pod) > 100)
    assert "orbit_runs_total{" in scraped(pod)
    with pytest.raises(ConnectionError, match="401"):
        call_http(pod.url, "worker.metrics")

    assert pod.stop() == {"worker": 0, "orbit-metrics": 0}
    assert history(hub, pod)["runs"] == recorded(pod)


def test_a_job_is_complete_and_its_runs_are_told_to_the_last(hub):
    """The sidecar is told to stop when the work has ended by itself, as it does in a second."""
    pod = hub.node.start("nightly-1", pod_of(manifest("job.yaml", "Job")), worker=worker("137"))

    assert pod.complete() == {"worker": 0, "orbit-metrics": 0}
    told = history(hub, pod)
    assert (told["runs"], told["failed"]) == (recorded(pod), 14) == (137, 14)


def test_a_worker_that_overruns_the_grace_takes_no_finished_run_with_it(hub):
    """It is killed, and the service has two seconds left. The run in flight is not told."""
    spec = pod_of(manifest("sidecar.yaml", "Deployment"))
    spec["terminationGracePeriodSeconds"] = 1
    pod = hub.node.start("stubborn-1", spec, worker=["python", "-c", STUBBORN])
    until(lambda: runs(pod) == 50)

    assert pod.stop() == {"worker": 137, "orbit-metrics": 0}
    told = history(hub, pod)
    assert told["runs"] - told["failed"] == 50


def test_a_sidecar_that_is_killed_comes_back_with_the_same_numbers(node):
    """Its container is another, its volumes are the pod's; and service links do no harm."""
    node.services = ["orbit", "orbit-metrics", "orbit-http", "orbit-socket", "orbit-state"]
    spec = pod_of(manifest("sidecar.yaml", "Deployment"))
    del spec["enableServiceLinks"]
    pod = node.start("mailer-1", spec, worker=worker())
    until(lambda: runs(pod) > 100)

    pod.kill("orbit-metrics")
    pod.start_container("orbit-metrics")
    until(lambda: pod.probe("orbit-metrics", "livenessProbe"))
    pod.end("worker")

    assert last_life(pod) == recorded(pod)
    assert "variables of Kubernetes Services" in pod.log("orbit-metrics")


def test_a_service_of_the_node_counts_for_the_pods_there_and_is_replaced_without_a_loss(node):
    """Its folders are made root's by the node, and the service's by its init container, twice."""
    spec = pod_of(manifest("daemonset.yaml", "DaemonSet"))
    mailer = pod_of(manifest("daemonset.yaml", "Deployment"))
    service = node.start("service-1", spec)
    mailers = [node.start(name, mailer, worker=worker()) for name in ("mailer-1", "mailer-2")]
    until(lambda: runs(service) > 100)

    assert service.stop() == {"orbit-metrics": 0}
    service = node.start("service-2", spec)
    assert [pod.stop() for pod in mailers] == [{"worker": 0}, {"worker": 0}]

    assert last_life(service) == sum(map(recorded, mailers))


def test_a_pod_of_another_user_is_turned_away_and_the_log_names_the_setting(node):
    spec = pod_of(manifest("daemonset.yaml", "Deployment"))
    spec["containers"][0]["securityContext"]["runAsUser"] = 10003
    service = node.start("service-1", pod_of(manifest("daemonset.yaml", "DaemonSet")))
    stranger = node.start("stranger-1", spec, worker=worker())

    until(lambda: re.search("10003.*ORBIT_ALLOW_UIDS", service.log("orbit-metrics")))
    assert stranger.stop() == {"worker": 0}
    assert not ask(service, "worker.metrics")["known"]
