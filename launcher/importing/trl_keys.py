"""Keys of TRL that a recipe does not need, or cannot say."""

from __future__ import annotations

# Keys that only one trainer has, by which a file tells its trainer.
TELLING: dict[str, tuple[str, ...]] = {
    "dpo": ("beta", "precompute_ref_log_probs", "loss_weights", "f_divergence_type", "use_weighting", "ld_alpha", "sync_ref_model", "discopop_tau", "label_smoothing"),
    "reward": ("center_rewards_coefficient",),
    "sft": ("packing", "assistant_only_loss", "completion_only_loss", "dataset_text_field", "eval_packing", "packing_strategy", "dataset_kwargs"),
}  # fmt: skip

NOT_NEEDED: dict[str, str] = {
    **dict.fromkeys(("output_dir", "output-dir"), "the run directory is the owner: runs/NAME-001, -002, ..."),
    "run_name": "the recipe's name names the run",
    "project": "no tracker of the file reads it",
    "dataset_num_proc": "launcher prepares with as many processes as there are cores",
    "shuffle_dataset": "rows are shuffled anew in every epoch",
    **dict.fromkeys(("padding_free", "pad_to_multiple_of", "eval_packing", "pad_token"), "padding changes no result"),
    "ignore_bias_buffers": "distributed is the owner, and sets it as the engine needs",
    "lora_task_type": "the task tells it",
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "use_bnb_nested_quant", "bnb_4bit_quant_type", "bnb_4bit_quant_storage"), "the file does not quantise"),
    **dict.fromkeys(("precompute_ref_log_probs", "precompute_ref_batch_size"), "launcher settles when the reference is computed; the result is the same"),
    "packing_strategy": "conversations are packed whole, or the file does not pack",
    "num_processes": "the recipe means the same on any number of GPUs; it was counted into global_batch_size",
    "num_machines": "`launcher run --nodes` says it",
    **dict.fromkeys(("main_process_port", "main_process_ip", "machine_rank", "mixed_precision", "dynamo_backend"), "launcher starts the processes itself"),
    "env": "variables are set where the run is started",
    "config": "its keys were read with the others",
    **dict.fromkeys(("ref_model_mixup_alpha", "ref_model_sync_steps"), "sync_ref_model is off"),
    **dict.fromkeys(("f_alpha_divergence_coef", "discopop_tau"), "the loss of the file does not read it, or has it at its default"),
    "loss_type": "nll is the loss of sft",
}  # fmt: skip

NOT_TRANSLATED: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("use_weighting", "ld_alpha", "sync_ref_model", "router_aux_loss_coef", "activation_offloading", "lora_target_parameters"), ("launcher has nothing like it", "the recipe trains without it")),
    "f_divergence_type": ("the divergence is reverse_kl", "nothing has to be done where the file has its default"),
    "eos_token": ("the chat template ends turns, with the tokenizer's own tokens", "where they differ, write task.chat_template: chatml or a file of Jinja"),
    "truncation_mode": ("long rows are cut at their end", "see the cut rows with `launcher data`"),
    "model_init_kwargs": ("what loads the model are keys of the recipe", "see model: dtype, attn_implementation, config"),
    "dataset_kwargs": ("launcher prepares the rows itself", "see task.format and data.columns"),
    **dict.fromkeys(("dataset_streaming", "streaming"), ("rows of these tasks are read before training", "nothing has to be done where they fit on the disk")),
    "test_split_size": ("it is read with datasets alone", "write data.validation_share"),
    "data_dir": ("a folder inside a hub data set is not chosen", "name the folder as the source"),
    "data_files": ("files inside a hub data set are not chosen", "name the file as the source"),
    "disable_dropout": ("dropout is the model's own", "write model.config: {attention_dropout: 0.0} where the model has dropout"),
    **dict.fromkeys(("reward_model_path", "reward_funcs", "num_generations", "max_completion_length"), ("launcher has no online methods", "keep this run where it is")),
}  # fmt: skip

# Keys that the rules in trl.py read.
READ = frozenset(
    ["model_name_or_path", "model_revision", "dtype", "attn_implementation", "trust_remote_code", "use_peft", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_modules_to_save", "use_rslora", "use_dora", "load_in_4bit", "load_in_8bit", "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "datasets", "path", "name", "split", "columns", "fraction", "max_length", "packing", "assistant_only_loss", "completion_only_loss", "chat_template_path", "loss_type", "loss_weights", "beta", "label_smoothing", "center_rewards_coefficient", "deepspeed", "fsdp", "fsdp_config", "accelerate_config", "bf16", "fp16", "tf32", "report_to", "gradient_checkpointing", "gradient_checkpointing_kwargs", "resume_from_checkpoint", "warmup_ratio", "warmup_steps", "eval_strategy"]
)
