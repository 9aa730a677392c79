"""Keys of Axolotl that a recipe does not need, or cannot say."""

from __future__ import annotations

_FAST = "launcher has no such kernels of its own"
_NO_TOKENS = "launcher adds no tokens"

NOT_NEEDED: dict[str, str] = {
    **dict.fromkeys(("model_type", "tokenizer_type", "base_model_config", "cls_model_config", "is_llama_derived_model", "is_falcon_derived_model", "is_mistral_derived_model", "is_qwen_derived_model", "processor_type"), "the model's own configuration tells its class"),
    **dict.fromkeys(("tokenizer_use_fast", "tokenizer_legacy", "tokenizer_save_jinja_files"), "tokenizers are the fast ones, kept with the model"),
    **dict.fromkeys(("dataset_prepared_path", "dataset_processes", "dataset_num_proc", "dataset_keep_in_memory", "skip_prepare_dataset"), "prepared rows are kept, and made anew where data or recipe changed"),
    "output_dir": "the run directory is the owner: runs/NAME-001, -002, ...",
    "strict": "launcher always refuses keys that it does not know",
    "pad_to_sequence_len": "padding changes no result; rows are padded to the longest of a batch",
    **dict.fromkeys(("eval_sample_packing", "sample_packing_group_size", "sample_packing_bin_size", "sample_packing_eff_est", "total_num_tokens", "multipack_real_batches", "pretrain_multipack_buffer_size", "pretrain_multipack_attn"), "packing is counted before training; rows of validation are not packed"),
    **dict.fromkeys(("auto_resume_from_checkpoints", "resume_from_checkpoint"), "the verb resume is the owner"),
    **dict.fromkeys(("wandb_name", "wandb_run_id"), "the run directory names the run, also on W&B"),
    **dict.fromkeys(("wandb_watch", "wandb_log_model"), "W&B gets metrics, tables and the report, and no weights"),
    **dict.fromkeys(("eval_table_size", "eval_max_new_tokens", "eval_table_max_new_tokens"), "the report shows answers to validation prompts (task.sample_generations)"),
    **dict.fromkeys(("save_first_step", "save_only_model", "save_safetensors"), "checkpoints are launcher's own: complete, and safetensors"),
    **dict.fromkeys(("hub_model_id", "hub_strategy", "hub_revision", "push_dataset_to_hub", "hf_use_auth_token"), "a run uploads nothing"),
    **dict.fromkeys(("loss_watchdog_threshold", "loss_watchdog_patience"), "a loss that is NaN or infinite ends the run"),
    **dict.fromkeys(("xformers_attention", "s2_attention"), "it is off in the file"),
    **dict.fromkeys(("device", "device_map", "world_size", "local_rank", "ddp", "max_memory", "gpu_memory_limit", "low_cpu_mem_usage", "experimental_skip_move_to_device", "gc_steps", "accelerator_config", "ddp_backend"), "distributed is the owner, and sets it as the engine needs"),
    **dict.fromkeys(("fsdp_version", "fsdp_final_state_dict_type"), "launcher's engine fsdp is FSDP2; model/ is written whole"),
    **dict.fromkeys(("debug", "profiler_steps", "include_tokens_per_second", "include_tkps", "use_otel_metrics", "otel_metrics_host", "otel_metrics_port"), "the run directory has metrics, memory and tokens a second"),
    **dict.fromkeys(("use_ray", "ray_run_name", "ray_num_workers", "resources_per_worker"), "launcher does not run under Ray; `launcher submit` starts jobs on Slurm"),
    **dict.fromkeys(("loraplus_lr_embedding", "lora_on_cpu", "lora_fan_in_fan_out", "merge_lora", "merge_method", "qlora_sharded_model_loading", "peft_autocast_adapter_dtype"), "PEFT finds it out, and model/ is merged"),
    **dict.fromkeys(("load_in_8bit", "load_in_4bit"), "it is off in the file"),
    **dict.fromkeys(("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_linear", "lora_modules_to_save"), "the file trains without an adapter"),
    **dict.fromkeys(("mlflow_tracking_uri", "mlflow_experiment_name", "comet_project_name", "trackio_project_name"), "the tracker reads its own settings from its environment variables"),
    **dict.fromkeys(("trl", "vllm"), "online methods read it, which this file does not do"),
    **dict.fromkeys(("max_prompt_len", "dpo_use_logits_to_keep", "precompute_ref_log_probs", "dataset_exact_deduplication_report"), "launcher settles it; the result is the same"),
    **dict.fromkeys(("mean_resizing_embeddings", "shrink_embeddings", "resize_token_embeddings_to_32x"), "launcher changes no embeddings"),
    "num_labels": "a reward is one number",
    "hf_mirror": "HF_ENDPOINT names the mirror",
}  # fmt: skip

NOT_TRANSLATED: dict[str, tuple[str, str]] = {
    "special_tokens": ("launcher takes the tokenizer as it is, and never learns padding", "where a token other than pad_token matters, save a tokenizer with it and name that under model.tokenizer_name_or_path"),
    **dict.fromkeys(("tokens", "added_tokens_overrides", "fix_untrained_tokens", "peft_trainable_token_indices"), (_NO_TOKENS, "save a tokenizer and model with them first, and name that folder")),
    "lora_model_dir": ("the run would go on from adapters, and launcher begins with new ones", "merge them into the model first, and name that under model.name_or_path"),
    **dict.fromkeys(("lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "lora_embedding_kernel", "unsloth_cross_entropy_loss", "unsloth_lora_mlp", "unsloth_lora_qkv", "unsloth_lora_o", "unsloth_rms_norm", "unsloth_rope", "flash_attn_cross_entropy", "flash_attn_rms_norm", "flash_attn_fuse_qkv", "flash_attn_fuse_mlp", "cut_cross_entropy", "use_kernels", "batch_flattening", "tiled_mlp", "chunked_cross_entropy"), (_FAST, "the result is the same without; training.use_liger_kernel saves memory")),
    "liger_layer_norm": ("launcher's liger_kernel_config takes it under another name for some models", "add it to training.liger_kernel_config"),
    **dict.fromkeys(("xformers_attention", "s2_attention"), ("launcher has no such attention", "write model.attn_implementation: flash_attention_2 or sdpa")),
    **dict.fromkeys(("peft_layers_to_transform", "peft_layers_pattern"), ("adapters are chosen by names of modules", "write strategy.target_modules: a regular expression that names the layers")),
    **dict.fromkeys(("lora_target_parameters", "peft_layer_replication", "peft", "bnb_config_kwargs", "gptq", "loftq_config"), ("launcher has nothing like it", "the recipe trains without it")),
    "unfrozen_parameters": ("which parts train is the strategy's", "write strategy: layerwise, encoder or head"),
    **dict.fromkeys(("relora", "relora_steps", "relora_warmup_steps", "relora_cpu_offload", "relora_prune_ratio", "lisa_n_layers", "lisa_step_interval", "lisa_layers_attribute", "use_pose", "curriculum_sampling", "sample_packing_sequentially", "lr_groups", "embedding_lr", "embedding_lr_scale", "lr_quadratic_warmup", "cosine_constant_lr_ratio", "lr_div_factor", "adam_epsilon2", "adam_beta3", "optim_target_modules", "dpo_use_weighting", "simpo_gamma", "orpo_alpha", "cpo_alpha", "quantization", "qat", "process_reward_model", "llmcompressor", "diffusion"), ("launcher has nothing like it", "the recipe trains without it, which is another run")),
    "cosine_min_lr_ratio": ("the schedule is not cosine", "write lr_scheduler_type: cosine_with_min_lr and lr_scheduler_kwargs: {min_lr_rate: ...}"),
    **dict.fromkeys(("sequence_parallel_degree", "context_parallel_size"), ("Ulysses here is for causal-lm on DeepSpeed, and divides how many rows go together", "write distributed.sequence_parallel_size, and global_batch_size for fewer rows at a time")),
    "tensor_parallel_size": ("runs with tensor parallelism can be planned, but not started", "write distributed.zero_stage: 3 or engine: fsdp"),
    "dp_shard_size": ("the engine shards over all GPUs", "write distributed.engine: fsdp"),
    **dict.fromkeys(("do_causal_lm_eval", "eval_causal_lm_metrics", "do_bench_eval", "bench_dataset", "bench_split"), ("evaluations are the task's own", "see evaluation")),
    **dict.fromkeys(("dataset_shard_num", "dataset_shard_idx", "shards", "shards_idx", "skip", "preprocess_shards"), ("a recipe takes all rows, or the first ones", "write limit beside the source")),
    "dataset_exact_deduplication": ("repeated rows are reported, not removed", "`launcher data` names them"),
    **dict.fromkeys(("min_sample_len", "excess_length_strategy"), ("long conversations are cut and counted, short ones kept", "clean the data")),
    "shuffle_merged_datasets": ("rows are shuffled", "write training.train_sampling_strategy: sequential"),
    "streaming": ("rows of these tasks are read before training", "nothing has to be done where they fit on the disk"),
    "conversation": ("it is a name of earlier years for a template", "write task.chat_template"),
    "chat_template": ("a recipe has one chat template for all data", "write task.chat_template"),
    "chat_template_jinja": ("a recipe has one chat template for all data", "write task.chat_template: a file of Jinja"),
    **dict.fromkeys(("message_field_training", "message_field_training_detail"), ("which turns are learned is one rule for all rows", "see task.learned_answers")),
    **dict.fromkeys(("drop_system_message", "split_thinking", "field_thinking", "template_thinking_key", "input_transform", "input_format", "field_human", "field_model", "temperature", "logprobs_field", "train_on_split"), ("launcher reads rows without it", "change the data")),
    "trust_remote_code": ("data sets that need code are never run", "convert the data to files"),
    "max_steps": ("it is no number of steps", "write training.max_steps"),
    "torch_compile": ("it is not true or false", "write training.torch_compile: true"),
}  # fmt: skip

# Keys that the rules in axolotl.py and axolotl_data.py read.
READ = frozenset(
    ["base_model", "revision_of_model", "trust_remote_code", "tokenizer_config", "attn_implementation", "attention", "flash_attention", "sdp_attention", "eager_attention", "flex_attention", "plugins", "rl", "rl_beta", "dpo_beta", "rpo_alpha", "dpo_label_smoothing", "reward_model", "center_rewards_coefficient", "chat_template", "chat_template_jinja", "default_system_message", "sample_packing", "pretraining_sample_concatenation", "deepspeed", "fsdp", "fsdp_config", "bf16", "fp16", "fp8", "tf32", "bfloat16", "float16", "float32", "adapter", "peft_use_dora", "peft_use_rslora", "peft_init_lora_weights", "loraplus_lr_ratio", "batch_size", "datasets", "test_datasets", "pretraining_dataset", "sequence_len", "val_set_size", "evals_per_epoch", "saves_per_epoch", "eval_steps", "save_steps", "eval_strategy", "evaluation_strategy", "save_strategy", "early_stopping_patience", "load_best_model_at_end", "save_total_limit", "gradient_checkpointing", "gradient_checkpointing_kwargs", "wandb_project", "wandb_entity", "wandb_mode", "use_tensorboard", "use_mlflow", "use_comet", "train_on_inputs", "group_by_length", "warmup_steps", "warmup_ratio", "path", "name", "split", "type", "data_files", "field", "field_messages", "field_tools", "field_chosen", "field_rejected", "message_property_mappings", "message_field_role", "message_field_content", "roles", "roles_to_train", "train_on_eos", "ds_type", "revision", "text_column"]
)
