"""Configurations with the keys that the documentation of the three tools shows, each short and written by hand."""

LLAMAFACTORY = {
    "lora-sft": """\
### model
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
trust_remote_code: true

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: identity,alpaca_en_demo
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
dataloader_num_workers: 4

### output
output_dir: saves/llama3-8b/lora/sft
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none

### train
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null

### eval
val_size: 0.1
per_device_eval_batch_size: 1
eval_strategy: steps
eval_steps: 500
""",
    "full-sft": """\
model_name_or_path: Qwen/Qwen2.5-7B
stage: sft
do_train: true
finetuning_type: full
deepspeed: examples/deepspeed/ds_z3_config.json
dataset: identity
template: qwen
cutoff_len: 2048
neat_packing: true
flash_attn: fa2
enable_liger_kernel: true
output_dir: saves/full
save_steps: 500
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
learning_rate: 1.0e-5
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_steps: 20
bf16: true
report_to: wandb
run_name: full/qwen
""",
    "dpo": """\
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: dpo
do_train: true
finetuning_type: lora
lora_rank: 16
lora_alpha: 64
lora_target: q_proj,v_proj
pref_beta: 0.2
pref_loss: hinge
pref_ftx: 0.5
dataset: dpo_en_demo
template: llama3
cutoff_len: 1024
output_dir: saves/dpo
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 5.0e-6
bf16: true
""",
    "qlora": """\
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
quantization_bit: 4
quantization_method: bnb
double_quantization: true
stage: sft
finetuning_type: lora
lora_target: all
use_dora: false
dataset: identity
template: llama3
output_dir: saves/qlora
per_device_train_batch_size: 1
learning_rate: 1.0e-4
bf16: true
""",
    "reward": """\
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: rm
do_train: true
finetuning_type: lora
lora_target: all
dataset: dpo_en_demo
template: llama3
output_dir: saves/reward
learning_rate: 1.0e-4
bf16: true
""",
    "pretraining": """\
model_name_or_path: meta-llama/Meta-Llama-3-8B
stage: pt
do_train: true
finetuning_type: full
dataset: c4_demo
cutoff_len: 2048
output_dir: saves/pt
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
fp16: true
""",
    "freeze": """\
model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct
stage: sft
finetuning_type: freeze
freeze_trainable_layers: 4
freeze_trainable_modules: all
dataset: identity
template: llama3
output_dir: saves/freeze
learning_rate: 1.0e-4
bf16: true
""",
}

AXOLOTL = {
    "lora": """\
base_model: NousResearch/Llama-3.2-1B
model_type: LlamaForCausalLM
tokenizer_type: AutoTokenizer
load_in_8bit: true
load_in_4bit: false
datasets:
  - path: mhenrichsen/alpaca_2k_test
    type: alpaca
dataset_prepared_path: last_run_prepared
val_set_size: 0.05
output_dir: ./outputs/lora-out
sequence_len: 4096
sample_packing: true
eval_sample_packing: false
pad_to_sequence_len: true
adapter: lora
lora_model_dir:
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_target_linear: true
wandb_project:
wandb_entity:
wandb_watch:
wandb_name:
wandb_log_model:
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
optimizer: adamw_bnb_8bit
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: true
resume_from_checkpoint:
logging_steps: 1
flash_attention: true
loss_watchdog_threshold: 5.0
loss_watchdog_patience: 3
warmup_ratio: 0.1
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
  pad_token: "<|end_of_text|>"
""",
    "qlora": """\
base_model: NousResearch/Meta-Llama-3-8B-Instruct
load_in_4bit: true
adapter: qlora
chat_template: llama3
datasets:
  - path: fozziethebeat/alpaca_messages_2k_test
    type: chat_template
    field_messages: messages
    message_property_mappings:
      role: role
      content: content
    roles_to_train: [assistant]
    train_on_eos: turn
sequence_len: 2048
lora_r: 16
lora_alpha: 32
lora_target_modules: [q_proj, v_proj]
gradient_accumulation_steps: 2
micro_batch_size: 1
num_epochs: 1
learning_rate: 2e-4
deepspeed: deepspeed_configs/zero3.json
wandb_project: qlora
wandb_entity: us
""",
    "full-fsdp": """\
base_model: NousResearch/Meta-Llama-3.1-8B
plugins:
  - axolotl.integrations.liger.LigerPlugin
liger_rope: true
liger_rms_norm: true
liger_glu_activation: true
liger_fused_linear_cross_entropy: true
chat_template: llama3
datasets:
  - path: mlabonne/FineTome-100k
    type: chat_template
    split: train[:20%]
    field_messages: conversations
    message_property_mappings:
      role: from
      content: value
val_set_size: 0.02
sequence_len: 4096
sample_packing: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 1
optimizer: adamw_torch_fused
learning_rate: 2e-5
bf16: auto
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: false
warmup_steps: 100
evals_per_epoch: 2
saves_per_epoch: 1
fsdp:
  - full_shard
  - auto_wrap
fsdp_config:
  fsdp_offload_params: true
  fsdp_transformer_layer_cls_to_wrap: LlamaDecoderLayer
special_tokens:
  pad_token: <|finetune_right_pad_id|>
  eos_token: <|eot_id|>
""",
    "full-deepspeed": """\
base_model: Qwen/Qwen2.5-0.5B
chat_template: chatml
datasets:
  - path: ./talk
    ds_type: json
    type: chat_template
deepspeed: deepspeed_configs/zero2.json
sequence_len: 1024
train_on_inputs: true
gradient_accumulation_steps: 1
micro_batch_size: 4
num_epochs: 2
learning_rate: 0.00001
bf16: true
max_steps: 100
save_steps: 50
""",
    "dpo": """\
base_model: meta-llama/Meta-Llama-3-8B-Instruct
chat_template: llama3
rl: dpo
rl_beta: 0.3
datasets:
  - path: fozziethebeat/alpaca_messages_2k_dpo_test
    type: chat_template.default
    field_messages: conversation
    field_chosen: chosen
    field_rejected: rejected
    roles:
      user: [user]
      assistant: [assistant]
sequence_len: 4096
sample_packing: false
adapter: lora
lora_r: 32
lora_alpha: 16
lora_target_linear: true
gradient_accumulation_steps: 4
micro_batch_size: 2
num_epochs: 4
learning_rate: 0.0002
warmup_steps: 10
""",
    "completion": """\
base_model: NousResearch/Llama-3.2-1B
datasets:
  - path: json
    data_files: texts.jsonl
    type: completion
    field: body
sequence_len: 1024
gradient_accumulation_steps: 1
micro_batch_size: 1
num_epochs: 1
learning_rate: 0.0001
""",
    "pretraining": """\
base_model: NousResearch/Llama-3.2-1B
pretraining_dataset:
  - path: allenai/c4
    name: en
    type: pretrain
max_steps: 1000
sequence_len: 2048
gradient_accumulation_steps: 1
micro_batch_size: 1
learning_rate: 0.0001
""",
}

TRL = {
    "sft": """\
model_name_or_path: Qwen/Qwen2.5-0.5B
dataset_name: trl-lib/Capybara
report_to: none
learning_rate: 0.0001
lr_scheduler_type: cosine
""",
    "sft-lora": """\
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
dtype: bfloat16
attn_implementation: sdpa
dataset_name: trl-lib/Capybara
dataset_config: default
max_length: 2048
packing: true
assistant_only_loss: true
eos_token: <|im_end|>
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
num_train_epochs: 1
learning_rate: 2.0e-4
eval_strategy: steps
eval_steps: 100
use_peft: true
lora_r: 32
lora_alpha: 16
lora_target_modules: all-linear
load_in_4bit: true
output_dir: Qwen2-0.5B-SFT
push_to_hub: true
num_processes: 4
accelerate_config: zero2
""",
    "mixture": """\
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
datasets:
  - path: trl-lib/Capybara
    split: train
    fraction: 0.7
  - path: stanfordnlp/imdb
    columns: [text]
    fraction: 0.3
test_split_size: 0.05
assistant_only_loss: true
output_dir: mix
""",
    "dpo": """\
model_name_or_path: Qwen/Qwen2-0.5B-Instruct
dataset_name: trl-lib/ultrafeedback_binarized
beta: 0.05
loss_type: [sigmoid, sft]
loss_weights: [1.0, 0.2]
max_length: 1024
learning_rate: 5.0e-7
output_dir: dpo
""",
    "reward": """\
model_name_or_path: Qwen/Qwen2-0.5B-Instruct
dataset_name: trl-lib/ultrafeedback_binarized
center_rewards_coefficient: 0.01
output_dir: reward
gradient_checkpointing: true
""",
    "command": """\
#!/bin/bash
# LoRA
trl sft \\
    --model_name_or_path Qwen/Qwen2-0.5B \\
    --dataset_name trl-lib/Capybara \\
    --learning_rate 2.0e-4 \\
    --num_train_epochs 1 \\
    --packing \\
    --per_device_train_batch_size 2 \\
    --gradient_accumulation_steps 8 \\
    --eval_strategy steps --eval_steps 100 \\
    --use_peft --lora_r 32 --lora_target_modules q_proj v_proj \\
    --lora_alpha=16 \\
    --no_gradient_checkpointing \\
    --output_dir Qwen2-0.5B-SFT
""",
    "accelerate": """\
CUDA_VISIBLE_DEVICES=0,1 accelerate launch --config_file examples/accelerate_configs/deepspeed_zero3.yaml --num_processes 2 \\
    trl/scripts/dpo.py \\
    --model_name_or_path Qwen/Qwen2-0.5B-Instruct \\
    --dataset_name trl-lib/ultrafeedback_binarized \\
    --per_device_train_batch_size 2 \\
    --max_steps 1000 \\
    --output_dir Qwen2-0.5B-DPO
""",
}

EXAMPLES = [
    (tool, name, text)
    for tool, found in (("llamafactory", LLAMAFACTORY), ("axolotl", AXOLOTL), ("trl", TRL))
    for name, text in found.items()
]
