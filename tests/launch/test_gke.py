"""launch/gke.sh, against a kubectl that records its calls."""

import pytest
import yaml
from fake_cloud import CONFIG, assert_one_line, printed

GKE = ("--name=run1", "--image=i:1", "--accelerator=tpu-v6e-slice", "--topology=4x4")
GKE_FLAGS = ("--", CONFIG, "--workdir=/mnt/shared/a", '--config.data.path=/d "x" \\ $(A) $$B')


def test_gke_applies_a_job_set(cloud):
    options = (*GKE, "--bucket=b", "--spot", "--service_account=s", "--namespace=team")
    options += ("--env=A=b c$d", "--env=LIBTPU_INIT_ARGS=")
    told = cloud.run("gke.sh", "apply", *options, "--dry_run", *GKE_FLAGS)
    assert told.returncode == 0 and cloud.calls() == []
    result = cloud.run("gke.sh", "apply", *options, *GKE_FLAGS)
    assert result.returncode == 0, result
    assert cloud.calls() == [["kubectl", "--namespace=team", "create", "--filename=-"]]
    assert "kubectl --namespace=team create --filename=-" in told.stdout.splitlines()[-1]
    manifest = yaml.safe_load((cloud.folder / "stdin").read_text())
    assert manifest == yaml.safe_load(told.stdout)

    assert manifest["kind"] == "JobSet" and manifest["metadata"]["name"] == "run1"
    [rule] = manifest["spec"]["failurePolicy"]["rules"]
    assert rule == {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 100
    [jobs] = manifest["spec"]["replicatedJobs"]
    job = jobs["template"]["spec"]
    assert jobs["replicas"] == 1 and job["completions"] == job["parallelism"] == 4
    assert job["backoffLimit"] == 0 and job["completionMode"] == "Indexed"
    # A mistake and SIGINT are final: 75, and 1 as all other failures, start again.
    [rule] = job["podFailurePolicy"]["rules"]
    exit_codes = {"containerName": "train", "operator": "In", "values": [2, 130]}
    assert rule == {"action": "FailJob", "onExitCodes": exit_codes}
    pod = job["template"]["spec"]
    assert job["template"]["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
    assert pod["restartPolicy"] == "Never" and pod["serviceAccountName"] == "s"
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v6e-slice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    [container] = pod["containers"]
    assert container["command"] == ["python", "-u", "main.py"]
    # Kubernetes makes $ of $$, and of $(A) the value of A.
    assert [flag.replace("$$", "$") for flag in container["args"]] == list(GKE_FLAGS[1:])
    assert "\\ $$(A) $$$$B" in container["args"][-1]
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    variables = {variable["name"]: variable["value"] for variable in container["env"]}
    cache = {"JAX_COMPILATION_CACHE_DIR": "/mnt/shared/.jax_cache"}
    assert variables == {"A": "b c$$d", "LIBTPU_INIT_ARGS": ""} | cache
    assert told.stderr == ""  # its label is a known one
    volumes = {volume.pop("name"): volume for volume in pod["volumes"]}
    places = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert set(places) == {"/mnt/shared", "/dev/shm"} and len(volumes) == 2
    assert places["/mnt/shared"]["csi"]["volumeAttributes"]["bucketName"] == "b"
    assert places["/dev/shm"] == {"emptyDir": {"medium": "Memory"}}


@pytest.mark.parametrize(
    ("topology", "chips", "hosts", "each"),
    [("2x2x1", None, 1, 4), ("1x1", None, 1, 1), ("2x4", 8, 1, 8), ("4x4x8", None, 32, 4)],
)
def test_gke_counts_hosts(cloud, topology, chips, hosts, each):
    options = [*GKE[:3], f"--topology={topology}", "--claim=disk", "--dry_run"]
    options += [f"--chips_per_host={chips}"] if chips else []
    options += ["--accelerator=tpu7x", "--env=JAX_COMPILATION_CACHE_DIR=/a"]
    told = cloud.run("gke.sh", "apply", *options, *GKE_FLAGS)
    job = yaml.safe_load(told.stdout)["spec"]["replicatedJobs"][0]["template"]["spec"]
    pod = job["template"]["spec"]
    assert job["completions"] == hosts
    assert pod["containers"][0]["resources"]["limits"]["google.com/tpu"] == each
    claim = {"name": "shared", "persistentVolumeClaim": {"claimName": "disk"}}
    assert pod["volumes"] == [{"name": "memory", "emptyDir": {"medium": "Memory"}}, claim]
    variable = {"name": "JAX_COMPILATION_CACHE_DIR", "value": "/a"}
    assert pod["containers"][0]["env"] == [variable]
    assert "tpu7x is none of the labels known here" in told.stderr


def test_gke_follows_shows_and_deletes(cloud):
    selector = "--selector=jobset.sigs.k8s.io/jobset-name=run1"
    one = f"{selector},batch.kubernetes.io/job-completion-index=2"
    logs = ["kubectl", "logs", "--follow", "--prefix", "--tail=100", "--max-log-requests=256"]
    expected = {
        ("logs", "--worker=2"): [[*logs, "--container=train", one]],
        ("logs", "--worker=all"): [[*logs, "--container=train", selector]],
        ("status",): [
            ["kubectl", "get", "jobset", "run1"],
            ["kubectl", "get", "pods", selector, "--output=wide"],
        ],
        ("delete",): [["kubectl", "delete", "jobset", "run1", "--ignore-not-found"]],
    }
    for (command, *options), calls in expected.items():
        told = cloud.run("gke.sh", command, "--name=run1", "--dry_run", *options)
        assert printed(told) == calls and cloud.calls() == []
        assert cloud.run("gke.sh", command, "--name=run1", *options).returncode == 0
        assert cloud.calls() == calls


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("start",), ("expected apply, logs", "'start'")),
        (("status",), ("--name",)),
        (("apply", "--name=a", *GKE_FLAGS), ("--image",)),
        (("apply", *GKE, "--bucket=b"), ("--config=FILE",)),
        (("apply", *GKE, *GKE_FLAGS), ("one of --bucket and --claim",)),
        (("apply", *GKE, "--topology=big", "--bucket=b", *GKE_FLAGS), ("4x4", "'big'")),
        (("apply", *GKE, "--topology=08x8", "--bucket=b", *GKE_FLAGS), ("4x4", "'08x8'")),
        (("apply", *GKE, "--accelerator=v6e", "--bucket=b", *GKE_FLAGS), ("tpu-v6e-slice",)),
        (("apply", *GKE, "--bucket=b", *GKE_FLAGS, "--workdir=/mnt/shared/.."), ("without ..",)),
        (("delete", "--name=a", "--", CONFIG), ("delete takes no flags", CONFIG)),
        (("status", "--name=a", "--namespace=a b"), ("--namespace", "'a b'")),
        (("apply", *GKE, "--chips_per_host=5", "--bucket=b", *GKE_FLAGS), ("16 chips", "found 5")),
        (("apply", *GKE, "--bucket=b", "--", CONFIG, "--workdir=/tmp/a"), ("/mnt/shared/…",)),
        (("apply", *GKE, "--bucket=b", *GKE_FLAGS, "--x=a\nb"), ("control characters",)),
    ],
)
def test_gke_mistakes(cloud, arguments, parts):
    assert_one_line(cloud.run("gke.sh", *arguments), *parts)
    assert cloud.calls() == []
