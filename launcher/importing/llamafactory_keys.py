"""Keys of LLaMA-Factory that a recipe does not need, or cannot say."""

from __future__ import annotations

_VERBS = "the verbs decide: run, evaluate, predict"
_OWN_KERNELS = "launcher has no such kernels of its own"

NOT_NEEDED: dict[str, str] = {
    **dict.fromkeys(("do_train", "do_eval", "do_predict", "predict_with_generate"), _VERBS),
    **dict.fromkeys(("overwrite_cache", "tokenized_path"), "prepared rows are kept, and made anew where data or recipe changed"),
    **dict.fromkeys(("preprocessing_num_workers", "preprocessing_batch_size"), "launcher prepares with as many processes as there are cores"),
    **dict.fromkeys(("plot_loss", "compute_accuracy", "include_effective_tokens_per_second", "include_mfu"), "the report always shows curves, metrics and tokens a second"),
    "overwrite_output_dir": "every run has a new directory",
    "output_dir": "the run directory is the owner: runs/NAME-001, -002, ...",
    "media_dir": "there are no images or videos in these tasks",
    "use_fast_tokenizer": "tokenizers are the fast ones",
    "low_cpu_mem_usage": "weights are always loaded so",
    "use_reentrant_gc": "launcher recomputes without re-entry where it can; the numbers are the same",
    "ignore_pad_token_for_loss": "padding is never learned",
    "print_param_status": "`launcher plan` lists what trains",
    "cache_dir": "HF_HOME says where models are kept",
    "pissa_iter": "PiSSA takes the exact singular vectors",
    "pissa_convert": "model/ is merged, and adapter/ has the adapters",
    "create_new_adapter": "every run begins with new adapters",
    "ray_run_name": "launcher does not run under Ray",
    **dict.fromkeys(("ray_storage_path", "ray_num_workers", "resources_per_worker", "placement_strategy", "ray_init_kwargs", "ray_storage_filesystem"), "launcher does not run under Ray; `launcher submit` starts jobs on Slurm"),
    **dict.fromkeys(("infer_backend", "infer_dtype", "offload_folder", "use_kv_cache", "max_new_tokens", "top_p", "top_k", "temperature", "do_sample", "num_beams", "repetition_penalty", "length_penalty", "eval_num_beams", "default_system", "skip_special_tokens"), "it is about generating, not training"),
    **dict.fromkeys(("export_dir", "export_size", "export_device", "export_quantization_bit", "export_quantization_dataset", "export_quantization_nsamples", "export_quantization_maxlen", "export_legacy_format", "export_hub_model_id"), "it is about exporting, not training"),
    **dict.fromkeys(("hf_hub_token", "ms_hub_token", "om_hub_token"), "`hf auth login` keeps the token, not a recipe"),
    **dict.fromkeys(("image_max_pixels", "image_min_pixels", "video_max_pixels", "video_min_pixels", "video_fps", "video_maxlen", "audio_sampling_rate", "use_audio_in_video", "image_do_pan_and_scan", "crop_to_patches"), "there are no images or videos in these tasks"),
    **dict.fromkeys(("freeze_vision_tower", "freeze_multi_modal_projector", "freeze_language_model"), "models of these tasks read texts alone"),
    "loraplus_lr_embedding": "adapters of embeddings train at the rate of the others",
    **dict.fromkeys(("kto_chosen_weight", "kto_rejected_weight", "simpo_gamma"), "another loss than this file's reads it"),
    **dict.fromkeys(("ppo_buffer_size", "ppo_epochs", "ppo_score_norm", "ppo_target", "ppo_whiten_rewards", "reward_model", "reward_model_adapters", "reward_model_quantization_bit", "reward_model_type"), "PPO reads it, which this file does not do"),
}  # fmt: skip

NOT_TRANSLATED: dict[str, tuple[str, str]] = {
    "adapter_name_or_path": ("the run would go on from adapters, and launcher begins with new ones", "merge them into the model first, and name that under model.name_or_path"),
    "adapter_folder": ("the run would go on from adapters, and launcher begins with new ones", "merge them into the model first"),
    **dict.fromkeys(("use_galore", "use_apollo", "use_badam", "use_adam_mini", "use_muon"), ("launcher does not have this optimizer", "choose one under training.optim")),
    **dict.fromkeys(("use_unsloth", "use_unsloth_gc", "use_v1_kernels", "use_kt", "kt_optimize_rule", "cpu_infer", "chunk_size"), (_OWN_KERNELS, "the result is the same without; training.use_liger_kernel saves memory")),
    **dict.fromkeys(("use_llama_pro", "mixture_of_depths", "shift_attn", "use_dft_loss", "use_eaft_loss", "use_asft_loss", "moe_aux_loss_coef", "pref_bco_weight", "ld_alpha"), ("launcher has nothing like it", "the recipe trains without it, which is another run")),
    **dict.fromkeys(("ref_model", "ref_model_adapters", "ref_model_quantization_bit"), ("the reference is always the model as it was before training", "start from the model that is to be the reference")),
    **dict.fromkeys(("add_tokens", "add_special_tokens", "new_special_tokens_config", "resize_vocab", "init_special_tokens"), ("launcher adds no tokens", "save a tokenizer and model with them first, and name that folder")),
    "split_special_tokens": ("texts that look like special tokens are read as such", "clean the data"),
    "rope_scaling": ("it is a part of the model's configuration", "write model.config: {rope_parameters: {...}}, as the model's config.json has them"),
    "train_from_scratch": ("a recipe with random weights gives the architecture's numbers", "write model.name_or_path: null and model.config"),
    **dict.fromkeys(("upcast_layernorm", "upcast_lmhead_output"), ("precision settles which parts are computed in full", "nothing has to be done in most runs")),
    "quantization_type": ("load_in_4bit is nf4", "nothing has to be done in most runs"),
    "double_quantization": ("load_in_4bit always quantises the constants too", "nothing has to be done in most runs"),
    "quantization_device_map": ("launcher places the weights itself", "see distributed"),
    "quantization_method": ("launcher quantises with bitsandbytes", "write strategy.load_in_4bit: true"),
    "quantization_bit": ("frozen weights are held in few bits with lora alone", "write finetuning_type: lora, or leave them whole"),
    "freeze_trainable_modules": ("layerwise trains whole layers", "strategy encoder trains parts of all layers"),
    "freeze_extra_modules": ("layerwise trains layers, the final norm and the head", "strategy.embeddings: train adds the embeddings"),
    "tool_format": ("the chat template says how tools are written", "choose a template that knows tools"),
    "eval_on_each_dataset": ("validation rows are one set", "evaluate each with `launcher evaluate`"),
    "val_size": ("it is a number of rows, and validation_share a share of them", "write data.validation_share, such as 0.05"),
    "streaming": ("rows of these tasks are read before training", "nothing has to be done where they fit on the disk"),
    "buffer_size": ("rows are not streamed", "nothing has to be done"),
    "max_samples": ("no data were named", "write limit beside the source"),
    "callbacks": ("code of a file is never loaded", "nothing has to be done, or change launcher's code"),
    "swanlab_project": ("launcher does not know SwanLab's keys", "tracking.report_to: [swanlab] starts it with its own"),
    "use_swanlab": ("launcher does not know SwanLab's keys", "tracking.report_to: [swanlab] starts it with its own"),
    "fp8_backend": ("accelerate chooses the library", "nothing has to be done"),
    "use_mca": ("launcher does not run Megatron", "write distributed: {engine: fsdp} or zero_stage: 3"),
}  # fmt: skip

# Keys that the rules in llamafactory.py read.
READ = frozenset(
    ["stage", "finetuning_type", "lora_rank", "lora_alpha", "lora_dropout", "lora_target", "additional_target", "use_rslora", "use_dora", "loraplus_lr_ratio", "pissa_init", "pref_beta", "pref_loss", "pref_ftx", "dpo_label_smoothing", "train_on_prompt", "mask_history", "packing", "neat_packing", "template", "dataset", "eval_dataset", "dataset_dir", "cutoff_len", "max_samples", "val_size", "mix_strategy", "interleave_probs", "flash_attn", "enable_liger_kernel", "trust_remote_code", "model_revision", "model_name_or_path", "bf16", "fp16", "pure_bf16", "fp8", "quantization_bit", "quantization_method", "deepspeed", "fsdp", "fsdp_config", "report_to", "resume_from_checkpoint", "early_stopping_steps", "disable_gradient_checkpointing", "disable_shuffling", "warmup_ratio", "warmup_steps", "run_name", "project"]
)
