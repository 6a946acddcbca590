"""Checks manifests against the schemas that Kubernetes publishes, as `kubernetes-validate` ships them.

Reads YAML documents from stdin; arguments are versions such as 1.30. Prints the documents as one JSON
list, or says what is wrong and ends with status 1. Unknown fields are errors.
"""

import json
import sys

import kubernetes_validate
import yaml


class Unique(yaml.SafeLoader):
    """YAML takes the last of two equal keys in silence; kubectl does not take either."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{', '.join(map(str, twice))} twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


documents = [d for d in yaml.load_all(sys.stdin.read(), Unique) if d is not None]
wrong = []
for document in documents:
    name = f"{document.get('kind')}/{document.get('metadata', {}).get('name')}"
    for version in sys.argv[1:]:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except Exception as error:  # one line each, whatever the library raises
            wrong.append(f"{name} for {version}: {str(error).splitlines()[0]}")
if wrong:
    print("\n".join(wrong), file=sys.stderr)
    sys.exit(1)
json.dump(documents, sys.stdout)
