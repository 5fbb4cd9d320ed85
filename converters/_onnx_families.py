"""stub until the families land"""


def builder_class(config):
    from onnxruntime_genai.models import builders as b

    return {"LlamaForCausalLM": b.LlamaModel, "Qwen2ForCausalLM": b.QwenModel}[
        config.architectures[0]
    ]
