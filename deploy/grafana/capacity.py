"""How full everything is, and what moves because of it."""

from .panel import Board, Query, gauge, panel, quantile, rate

CAPACITY = Board(
    uid="multiflora-capacity",
    title="multiflora / Capacity",
    about="The KV cache, adapter memory, the batch, and the machine.",
    rows=(
        (
            "KV cache",
            (
                panel(
                    "Blocks",
                    "Held by requests, kept for their prefix, and all there are.",
                    *(
                        Query(gauge(f"multiflora_kv_blocks{part}"), legend)
                        for part, legend in (("_used", "held"), ("_cached", "kept"), ("", "all"))
                    ),
                ),
                panel(
                    "Preemptions",
                    "Requests set back to make room, per second.",
                    rate("multiflora_preemptions_total"),
                    unit="reqps",
                ),
                panel(
                    "Lent to adapters",
                    "KV cache that holds versions beyond their own memory.",
                    gauge("multiflora_adapter_borrowed_bytes"),
                    unit="bytes",
                ),
            ),
        ),
        (
            "Adapter memory",
            (
                panel(
                    "Device",
                    "Versions on the device, pinned ones among them, and the room there is.",
                    Query(gauge("multiflora_adapter_bytes_used"), "used"),
                    Query(gauge("multiflora_adapter_pinned_bytes"), "pinned"),
                    Query(gauge("multiflora_adapter_bytes"), "all"),
                    unit="bytes",
                ),
                panel(
                    "Host",
                    "Versions that left the device, or are on their way to it.",
                    Query(gauge("multiflora_adapter_host_bytes_used"), "used"),
                    Query(gauge("multiflora_adapter_host_bytes"), "all"),
                    unit="bytes",
                ),
                panel(
                    "Versions on the device",
                    "And all names.",
                    Query(gauge("multiflora_resident_versions"), "on the device"),
                    Query(gauge("multiflora_adapters"), "names"),
                ),
                panel(
                    "Where requests find their versions",
                    "A version that is not on the device is loaded first.",
                    Query(rate("multiflora_adapter_arrivals_total", "tier"), "{{tier}}"),
                    kind="areas",
                    unit="reqps",
                ),
                panel(
                    "Evictions",
                    "Versions that left a memory, by memory and cause.",
                    Query(
                        rate("multiflora_adapter_evictions_total", "tier, cause"),
                        "{{tier}}: {{cause}}",
                    ),
                ),
                panel(
                    "Loads, p95 by stage",
                    "Header, file, copy to the device.",
                    Query(quantile(0.95, "multiflora_adapter_load_seconds", "stage"), "{{stage}}"),
                    unit="s",
                ),
                panel(
                    "Failed loads",
                    "By the code of the reason.",
                    Query(rate("multiflora_adapter_load_failures_total", "code"), "{{code}}"),
                ),
            ),
        ),
        (
            "Batch",
            (
                panel(
                    "Requests that share a step",
                    "Median and p95.",
                    Query(quantile(0.5, "multiflora_step_requests"), "p50"),
                    Query(quantile(0.95, "multiflora_step_requests"), "p95"),
                ),
                panel(
                    "Versions that share a step",
                    "Median and p95.",
                    Query(quantile(0.5, "multiflora_step_versions"), "p50"),
                    Query(quantile(0.95, "multiflora_step_versions"), "p95"),
                ),
                panel(
                    "Rows by what computes them",
                    "The base alone, an adapter, a blend of several.",
                    Query(rate("multiflora_step_rows_total", "kind"), "{{kind}}"),
                    kind="areas",
                ),
                panel(
                    "Ranks computed per rank needed",
                    "Above 1 is what tiles of rows and ranks compute for nobody.",
                    rate("multiflora_lora_rank_rows_total", where='kind="computed"')
                    + " / "
                    + rate("multiflora_lora_rank_rows_total", where='kind="needed"'),
                ),
                panel(
                    "Captured steps",
                    "Replays per second, and rows that they computed for nobody.",
                    Query(rate("multiflora_graph_replays_total"), "replays"),
                    Query(rate("multiflora_graph_padding_rows_total"), "padding rows"),
                ),
            ),
        ),
        (
            "Machine",
            (
                panel(
                    "Device memory",
                    "In use by whomever; a CPU's is the machine's.",
                    Query(gauge("multiflora_device_memory_used_bytes"), "used"),
                    Query(gauge("multiflora_device_memory_bytes"), "all"),
                    unit="bytes",
                ),
                panel(
                    "Process memory",
                    "Of the engine and of the API process.",
                    Query(gauge("multiflora_engine_resident_memory_bytes"), "engine"),
                    Query(gauge("multiflora_process_resident_memory_bytes"), "API"),
                    unit="bytes",
                ),
                panel(
                    "Processors",
                    "Seconds per second.",
                    Query(rate("multiflora_engine_cpu_seconds_total"), "engine"),
                    Query(rate("multiflora_process_cpu_seconds_total"), "API"),
                ),
                panel(
                    "Disk",
                    "Free room of the data directory.",
                    Query(gauge("multiflora_data_free_bytes"), "free"),
                    Query(gauge("multiflora_data_bytes"), "all"),
                    unit="bytes",
                ),
                panel(
                    "Open files and streams",
                    "Of the API process.",
                    Query(gauge("multiflora_process_open_fds"), "files"),
                    Query(gauge("multiflora_open_streams"), "streams"),
                    Query(gauge("multiflora_event_loop_tasks"), "tasks"),
                ),
                panel(
                    "Database log",
                    "What waits to be written back.",
                    gauge("multiflora_database_log_bytes"),
                    unit="bytes",
                ),
            ),
        ),
    ),
)
