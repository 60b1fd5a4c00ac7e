"""SQLite: where runs are kept."""

# What other rooms use, so that they can import it in one statement; `diagnosis` is imported only when it is needed.
# fmt: off
from nbrun.store import sets
from nbrun.store.connection import open_for_writing
from nbrun.store.database_file import is_set_aside
from nbrun.store.filters import Query, Since, read_query
from nbrun.store.location import FOLDER, NO_NOTEBOOK, SUFFIX, notebook_path, places_for, prepare_folder, store_path
from nbrun.store.locks import is_open_here
from nbrun.store.payloads import is_in_file, restored, whole, whole_run
from nbrun.store.queries import RunReference, StoredRun, newest_references
from nbrun.store.retention import KEEP_BYTES, KEEP_RUNS, Keep
from nbrun.store.rows import Checkpointed
from nbrun.store.session_store import ReadOnlyStore, SessionStore, store_of
from nbrun.store.writer import Committed

__all__ = [
    "FOLDER", "KEEP_BYTES", "KEEP_RUNS", "NO_NOTEBOOK", "SUFFIX", "Checkpointed", "Committed", "Keep", "Query",
    "ReadOnlyStore", "RunReference", "SessionStore", "Since", "StoredRun", "is_in_file", "is_open_here",
    "is_set_aside", "newest_references", "notebook_path", "open_for_writing", "places_for", "prepare_folder",
    "read_query", "restored", "sets", "store_of", "store_path", "whole", "whole_run",
]
