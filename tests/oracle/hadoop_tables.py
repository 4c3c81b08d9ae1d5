"""The tables of a warehouse without a catalog, as Iceberg's Hadoop catalog finds them: by their folders."""

import posixpath
import re

import pyarrow.fs
from pyiceberg.table import StaticTable

STATE = re.compile(r"/metadata/v(\d+)\.metadata\.json$")


class HadoopTables:
    """What the oracle needs of a PyIceberg catalog."""

    def __init__(self, warehouse, store):
        self.warehouse, self.store = warehouse, store
        if warehouse.startswith("file://"):
            self.files, self.root = pyarrow.fs.LocalFileSystem(), warehouse.removeprefix("file://")
        else:
            self.root = warehouse.removeprefix("s3://")
            self.files = pyarrow.fs.S3FileSystem(
                access_key=store["s3.access-key-id"],
                secret_key=store["s3.secret-access-key"],
                endpoint_override=store["s3.endpoint"],
                region=store["s3.region"],
            )

    def under(self, folder):
        return self.files.get_file_info(pyarrow.fs.FileSelector(folder, allow_not_found=True))

    def list_namespaces(self):
        return [(info.base_name,) for info in self.under(self.root) if not info.is_file]

    def list_tables(self, namespace):
        found = self.under(posixpath.join(self.root, *namespace))
        names = [(*namespace, info.base_name) for info in found if not info.is_file]
        return [name for name in names if self.numbers(name)]

    def folder(self, name):
        return posixpath.join(self.root, *name)

    def numbers(self, name):
        states = (STATE.search(info.path) for info in self.under(posixpath.join(self.folder(name), "metadata")))
        return sorted(int(state.group(1)) for state in states if state)

    def load_table(self, name):
        """As the hint says, which may be behind for a moment, and never is for long."""
        with self.files.open_input_stream(posixpath.join(self.folder(name), "metadata/version-hint.text")) as hint:
            number = int(hint.read())
        return StaticTable.from_metadata(f"{self.warehouse}/{'/'.join(name)}/metadata/v{number}.metadata.json", self.store)

    def drop_table(self, name):
        self.files.delete_dir(self.folder(tuple(name.split("."))))
