"""Many adapters over one base: stacked in a bank, used side by side in one batch, combined."""

from ._bank import AdapterBank as AdapterBank
from ._bank import Row as Row
from ._bank import make_bank as make_bank
from ._bank_apply import apply_ensemble as apply_ensemble
from ._bank_apply import apply_per_example as apply_per_example
from ._bank_apply import apply_rows as apply_rows
from ._bank_edit import add_adapter as add_adapter
from ._bank_edit import get_adapter as get_adapter
from ._bank_edit import remove_adapter as remove_adapter
from ._bank_edit import rename_adapter as rename_adapter
from ._bank_edit import replace_adapter as replace_adapter
from ._bank_rows import freeze_base as freeze_base
from ._bank_rows import merge_rows as merge_rows
from ._bank_rows import take_rows as take_rows
from ._bank_storage import bank_bytes as bank_bytes
from ._bank_write import grow_bank as grow_bank
