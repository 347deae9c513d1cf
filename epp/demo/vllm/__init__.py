"""`epp demo-vllm`: the demo with real engines, and the proof that epp knows what they hold. May import all rooms, as the demo may."""
