"""LoRA and its relatives on a network: which layers they change, laid over a shared base or put into it by peft."""
