"""Checks the Kubernetes manifests offline: each against its strict schema, and all against what we promise about them.

  validate.py k8s                 every base and overlay below k8s/
  validate.py k8s --print-config  the worker's configuration file of the base, for the tests
"""

import pathlib
import sys
import tomllib

import kubernetes_validate
import yaml

VERSIONS = ["1.28", "1.31", "1.34"]


class Invalid(Exception):
    """A manifest is not what it must be."""


def expect(condition, message):
    if not condition:
        raise Invalid(message)


def documents(path):
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def base(folder):
    """The documents of a base by (kind, name), as kustomize would build them."""
    kustomization = documents(folder / "kustomization.yaml")[0]
    present = sorted(path.name for path in folder.glob("*.yaml") if path.name != "kustomization.yaml")
    expect(kustomization["resources"] == present, f"{folder}: resources {kustomization['resources']}, files {present}")
    # What is checked here file by file is what kustomize builds: nothing transforms it.
    expect(kustomization.keys() == {"apiVersion", "kind", "resources"}, f"{folder}: more than resources in the base")
    found = {}
    for name in present:
        for document in documents(folder / name):
            found[document["kind"], document["metadata"]["name"]] = document
    return found


def validate_schemas(folder, found):
    for version in VERSIONS:
        for (kind, name), document in found.items():
            try:
                kubernetes_validate.validate(document, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                raise Invalid(f"{folder}: {kind}/{name} against {version}: {error.message}") from None


def validate_references(folder, found):
    stateful = found["StatefulSet", "lakemirror"]["spec"]
    pod = stateful["template"]["spec"]
    expect(("Service", stateful["serviceName"]) in found, "serviceName names no service")
    expect(("ServiceAccount", pod["serviceAccountName"]) in found, "serviceAccountName names no account")
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for volume in volumes.values():
        if "configMap" in volume:
            expect(("ConfigMap", volume["configMap"]["name"]) in found, f"volume {volume['name']}: no such ConfigMap")
        if "secret" in volume:
            expect(("Secret", volume["secret"]["secretName"]) in found, f"volume {volume['name']}: no such Secret")
    claims = {claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]}
    mounts = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
    expect(mounts == volumes.keys() | claims, f"mounts {mounts}, volumes {volumes.keys() | claims}")
    selected = stateful["template"]["metadata"]["labels"]
    selectors = [stateful["selector"]["matchLabels"], found["Service", "lakemirror"]["spec"]["selector"]]
    selectors.append(found["PodDisruptionBudget", "lakemirror"]["spec"]["selector"]["matchLabels"])
    expect(all(selector == selected for selector in selectors), f"labels {selected}, selectors {selectors}")
    expect(stateful["replicas"] == 1, "one writer")
    # PodSecurity "restricted", as the API server would check it.
    expect(pod["securityContext"]["runAsNonRoot"] is True, "runAsNonRoot")
    expect(pod["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", "seccompProfile")
    expect(pod["automountServiceAccountToken"] is False, "the pod gets a token")
    for container in pod["containers"]:
        context = container["securityContext"]
        expect(context["allowPrivilegeEscalation"] is False, "allowPrivilegeEscalation")
        expect(context["readOnlyRootFilesystem"] is True, "readOnlyRootFilesystem")
        expect(context["capabilities"] == {"drop": ["ALL"]}, "capabilities")
    budget = found["PodDisruptionBudget", "lakemirror"]["spec"]
    expect(budget.get("maxUnavailable") == 1 and "minAvailable" not in budget, "the budget would block drains")


def validate_config(folder, found):
    config = tomllib.loads(found["ConfigMap", "lakemirror-config"]["data"]["lakemirror.toml"])
    container = found["StatefulSet", "lakemirror"]["spec"]["template"]["spec"]["containers"][0]
    paths = [mount["mountPath"] for mount in container["volumeMounts"]]

    def mounted(path):
        expect(any(path.startswith(mount + "/") or path == mount for mount in paths), f"{path} is on no volume")

    mounted(config["source"]["password_file"])
    mounted(config["lake"]["warehouse"].removeprefix("file://"))
    mounted(config["state"]["dir"])
    mounted(config["read"]["socket"])
    mounted(container["args"][2])
    port = int(config["admin"]["listen"].rsplit(":", 1)[1])
    expect(container["ports"] == [{"name": "admin", "containerPort": port, "protocol": "TCP"}], "the admin port")
    for probe, path in (("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        expect(container[probe]["httpGet"] == {"path": path, "port": "admin"}, probe)


def main():
    root = pathlib.Path(sys.argv[1])
    if sys.argv[2:] == ["--print-config"]:
        print(documents(root / "base/configmap.yaml")[0]["data"]["lakemirror.toml"])
        return
    try:
        found = base(root / "base")
        validate_schemas(root / "base", found)
        validate_references(root / "base", found)
        validate_config(root / "base", found)
    except Invalid as error:
        sys.exit(f"k8s: {error}")
    print(f"k8s: {len(found)} manifests valid against Kubernetes {', '.join(VERSIONS)}")


main()
