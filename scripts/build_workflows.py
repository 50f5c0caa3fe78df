"""Write the sample workflows into workflows/, laid out in columns: python scripts/build_workflows.py

Written here once: what must agree between them, such as the widgets of our node and the folders of the models.
tests/test_workflows.py compares both with a real ComfyUI.
"""

from workflow import Workflow, place_of

WAN_21 = "https://huggingface.co/Comfy-Org/Wan_2.1_ComfyUI_repackaged/resolve/main/split_files"
WAN_22 = "https://huggingface.co/Comfy-Org/Wan_2.2_ComfyUI_Repackaged/resolve/main/split_files"
HUNYUAN = "https://huggingface.co/Comfy-Org/HunyuanVideo_repackaged/resolve/main/split_files"
LTX_2 = "https://huggingface.co/Comfy-Org/ltx-2/resolve/main/split_files"
LTX_23 = "https://huggingface.co/Comfy-Org/ltx-2.3/resolve/main/split_files"
LIGHTRICKS = "https://huggingface.co/Lightricks"
MINIMAX = "https://huggingface.co/Comfy-Org/MiniMax-H3/resolve/main"
HUNYUAN_15 = "https://huggingface.co/Comfy-Org/HunyuanVideo_1.5_repackaged/resolve/main/split_files"

CALIBRATION = "wan21_1_3b_480p_81_frames"

COMPARE = (
    "To compare with dense attention, bypass the SVG-EAR node (Ctrl+B) and run again with the same seed. "
    "The report tells what ran sparse and what did not, and why."
)
FOLLOW = (
    "First run the workflow wan21_1_3b_calibrate, with four prompts or more: it writes the calibration that SVG-EAR Load Calibration reads "
    f"here, models/svg_ear/{CALIBRATION}.safetensors. Until then that node is red. Press R after it was written.\n\n{COMPARE}"
)
WITH_SOUND = (
    "Video and sound are made together. SVG-EAR routes the video; text, frames given and sound stay exact. With a LoRA for 4 to 8 steps "
    f"set the preset to few-step.\n\n{COMPARE}"
)
SIDE_BY_SIDE = (
    "Makes the clip twice from the same noise, dense and with SVG-EAR, and compares them. The SVG-EAR node of the dense branch keeps all "
    "steps dense (dense_first_steps 10000): it changes nothing and takes the time. The first run compiles kernels; look at the second, "
    "with another seed."
)
TWICE = (
    "The first sampler makes the clip at half the size, which is too short for sparse attention and stays dense; the second runs sparse, "
    f"at 1920 x 1088, where 241 frames are 63,240 tokens. Its report is the one to look at.\n\n{COMPARE}"
)
GATHER = (
    "Run it four times or more, each time with another prompt; the seed changes by itself. The clips are dense as always and take up to "
    f"twice as long. After the fourth run SVG-EAR Save Calibration writes models/svg_ear/{CALIBRATION}.safetensors, which the workflow "
    "wan21_1_3b_calibrated follows."
)


def loaders(
    workflow: Workflow,
    diffusion: dict[str, str],
    text: tuple[str, ...],
    clip: list,
    vae: str,
    vision: str = "",
    audio_vae: str = "",
    advice: str = COMPARE,
) -> dict:
    """The first group: loaders with their files, and a note that says where the files go and gives ``advice``."""
    workflow.start("1. Models", 520)
    note(workflow, [address for address in (*diffusion.values(), *text, vae, vision, audio_vae) if address], advice)
    added = {}
    for name, address in diffusion.items():
        title = f"Load Diffusion Model ({name})" if len(diffusion) > 1 else None
        added[name] = workflow.add("UNETLoader", [_file(address), "default"], title, models=[address])
    kind = "CLIPLoader" if len(text) == 1 else "DualCLIPLoader"
    added["clip"] = workflow.add(kind, [*map(_file, text), *clip], models=list(text))
    added["vae"] = workflow.add("VAELoader", [_file(vae)], models=[vae])
    if vision:
        added["vision"] = workflow.add("CLIPVisionLoader", [_file(vision)], models=[vision])
    if audio_vae:
        added["audio_vae"] = workflow.add("VAELoader", [_file(audio_vae)], "Load VAE (audio)", models=[audio_vae])
    return added


def note(workflow: Workflow, addresses: list[str], advice: str) -> None:
    """A note that says where the files go, and gives ``advice``."""
    tree = "".join(f"models/{'/'.join(place_of(address))}\n" for address in addresses)
    text = (
        "Files and where they go (in the ComfyUI folder):\n\n"
        f"{tree}\n"
        "Every loader knows where its file can be had: the interface offers to download missing ones.\n\n"
        f"{advice}"
    )
    workflow.add("Note", [text], "Read me")


def prompts(workflow: Workflow, clip: dict, positive: str, negative: str | None) -> list[tuple]:
    """The prompt nodes; without a negative one only the positive is returned."""
    texts = {"Positive prompt": positive} | ({} if negative is None else {"Negative prompt": negative})
    return [(workflow.add("CLIPTextEncode", [text], title, clip=(clip, "CLIP")), "CONDITIONING") for title, text in texts.items()]


def output(
    workflow: Workflow,
    latent: tuple,
    vae: dict,
    rate: int,
    tiled: bool,
    reports: list[tuple[tuple, tuple]],
    audio_vae: dict | None = None,
) -> None:
    """The last groups: decode and save, and a report for each sampler run."""
    workflow.start("5. Video", 480)
    decode = ("VAEDecodeTiled", [256, 64, 64, 8]) if tiled else ("VAEDecode", [])
    images = workflow.add(*decode, samples=latent, vae=(vae, "VAE"))
    heard = {"audio": (workflow.add("VAEDecodeAudio", samples=latent, vae=(audio_vae, "VAE")), "AUDIO")} if audio_vae else {}
    video = workflow.add("CreateVideo", [rate], images=(images, "IMAGE"), **heard)
    workflow.add("SaveVideo", [f"video/{workflow.title}", "auto", "auto"], video=(video, "VIDEO"))
    workflow.start("6. What SVG-EAR did", 480, "#3f8f5a")
    for number, (model, sampled) in enumerate(reports, 1):
        title = f"SVG-EAR Report (sampler {number})" if len(reports) > 1 else None
        workflow.add("SVGEARReport", title=title, model=model, latent=sampled)


def wan22_14b_t2v() -> None:
    workflow = Workflow("wan22_14b_t2v")
    experts = {noise: f"{WAN_22}/diffusion_models/wan2.2_t2v_{noise}_noise_14B_fp8_scaled.safetensors" for noise in ("high", "low")}
    files = loaders(workflow, experts, (WAN_TEXT,), ["wan", "default"], f"{WAN_22}/vae/wan_2.1_vae.safetensors")
    models = []
    for noise in experts:
        workflow.start(f"2. SVG-EAR, {noise} noise", 400, "#3f8f5a")
        shifted = workflow.add("ModelSamplingSD3", [5.0], model=(files[noise], "MODEL"))
        models.append((workflow.add("SVGEARAttention", model=(shifted, "MODEL")), "MODEL"))
    workflow.start("3. Prompt and size", 460)
    positive, negative = prompts(workflow, files["clip"], PROMPT, NEGATIVE)
    size = workflow.add("EmptyHunyuanLatentVideo", [1280, 720, 81, 1])
    workflow.start("4. Sampling", 380)
    conditions = {"positive": positive, "negative": negative}
    first = workflow.add(
        "KSamplerAdvanced",
        ["enable", 42, "fixed", 20, 3.5, "euler", "simple", 0, 10, "enable"],
        "KSampler (high noise)",
        model=models[0],
        latent_image=(size, "LATENT"),
        **conditions,
    )
    second = workflow.add(
        "KSamplerAdvanced",
        ["disable", 0, "fixed", 20, 3.5, "euler", "simple", 10, 10000, "disable"],
        "KSampler (low noise)",
        model=models[1],
        latent_image=(first, "LATENT"),
        **conditions,
    )
    reports = [(models[0], (first, "LATENT")), (models[1], (second, "LATENT"))]
    output(workflow, (second, "LATENT"), files["vae"], 16, False, reports)
    workflow.save()


def wan21_14b_i2v() -> None:
    workflow = Workflow("wan21_14b_i2v")
    files = loaders(
        workflow,
        {"model": f"{WAN_21}/diffusion_models/wan2.1_i2v_480p_14B_fp16.safetensors"},
        (WAN_TEXT,),
        ["wan", "default"],
        f"{WAN_21}/vae/wan_2.1_vae.safetensors",
        f"{WAN_21}/clip_vision/clip_vision_h.safetensors",
    )
    model = _one_model(workflow, files, 8.0)
    workflow.start("3. Prompt, image and size", 460)
    positive, negative = prompts(workflow, files["clip"], MOTION_PROMPT, NEGATIVE)
    image = workflow.add("LoadImage", ["example.png", "image"])
    seen = workflow.add("CLIPVisionEncode", ["none"], clip_vision=(files["vision"], "CLIP_VISION"), image=(image, "IMAGE"))
    start = workflow.add(
        "WanImageToVideo",
        [832, 480, 81, 1],
        positive=positive,
        negative=negative,
        vae=(files["vae"], "VAE"),
        clip_vision_output=(seen, "CLIP_VISION_OUTPUT"),
        start_image=(image, "IMAGE"),
    )
    conditions = {name: (start, name) for name in ("positive", "negative")}
    sampled = _one_sampler(workflow, model, (start, "latent"), [42, "fixed", 20, 6.0, "uni_pc", "simple", 1.0], conditions)
    output(workflow, sampled, files["vae"], 16, False, [(model, sampled)])
    workflow.save()


def wan22_5b_ti2v() -> None:
    workflow = Workflow("wan22_5b_ti2v")
    files = loaders(
        workflow,
        {"model": f"{WAN_22}/diffusion_models/wan2.2_ti2v_5B_fp16.safetensors"},
        (WAN_TEXT,),
        ["wan", "default"],
        f"{WAN_22}/vae/wan2.2_vae.safetensors",
    )
    model = _one_model(workflow, files, 8.0)
    workflow.start("3. Prompt and size (connect an image to start_image for I2V)", 460)
    positive, negative = prompts(workflow, files["clip"], PROMPT, NEGATIVE)
    size = workflow.add("Wan22ImageToVideoLatent", [1280, 704, 121, 1], vae=(files["vae"], "VAE"))
    conditions = {"positive": positive, "negative": negative}
    sampled = _one_sampler(workflow, model, (size, "LATENT"), [42, "fixed", 20, 5.0, "uni_pc", "simple", 1.0], conditions)
    output(workflow, sampled, files["vae"], 24, False, [(model, sampled)])
    workflow.save()


def hunyuan_video_t2v() -> None:
    workflow = Workflow("hunyuan_video_t2v")
    files = loaders(
        workflow,
        {"model": f"{HUNYUAN}/diffusion_models/hunyuan_video_t2v_720p_bf16.safetensors"},
        (
            f"{HUNYUAN}/text_encoders/clip_l.safetensors",
            f"{HUNYUAN}/text_encoders/llava_llama3_fp8_scaled.safetensors",
        ),
        ["hunyuan_video", "default"],
        f"{HUNYUAN}/vae/hunyuan_video_vae_bf16.safetensors",
    )
    model = _one_model(workflow, files, 7.0)
    workflow.start("3. Prompt and size", 460)
    (prompt,) = prompts(workflow, files["clip"], PROMPT, None)
    positive = workflow.add("FluxGuidance", [6.0], conditioning=prompt)
    # guidance is distilled into the model: cfg stays 1 and the negative side is never evaluated
    negative = workflow.add("ConditioningZeroOut", conditioning=prompt)
    size = workflow.add("EmptyHunyuanLatentVideo", [1280, 720, 73, 1])
    conditions = {"positive": (positive, "CONDITIONING"), "negative": (negative, "CONDITIONING")}
    sampled = _one_sampler(workflow, model, (size, "LATENT"), [42, "fixed", 20, 1.0, "euler", "simple", 1.0], conditions)
    output(workflow, sampled, files["vae"], 24, True, [(model, sampled)])
    workflow.save()


def hunyuan_video_15_t2v() -> None:
    workflow = Workflow("hunyuan_video_15_t2v")
    files = loaders(
        workflow,
        {"model": f"{HUNYUAN_15}/diffusion_models/hunyuanvideo1.5_720p_t2v_fp16.safetensors"},
        (
            f"{HUNYUAN_15}/text_encoders/qwen_2.5_vl_7b_fp8_scaled.safetensors",
            f"{HUNYUAN_15}/text_encoders/byt5_small_glyphxl_fp16.safetensors",
        ),
        ["hunyuan_video_15", "default"],
        f"{HUNYUAN_15}/vae/hunyuanvideo15_vae_fp16.safetensors",
    )
    model = _one_model(workflow, files, 9.0)
    workflow.start("3. Prompt and size", 460)
    positive, negative = prompts(workflow, files["clip"], PROMPT, "")
    size = workflow.add("EmptyHunyuanVideo15Latent", [1280, 720, 121, 1])
    conditions = {"positive": positive, "negative": negative}
    sampled = _one_sampler(workflow, model, (size, "LATENT"), [42, "fixed", 20, 6.0, "euler", "simple", 1.0], conditions)
    output(workflow, sampled, files["vae"], 24, True, [(model, sampled)])
    workflow.save()


def ltx23_t2v() -> None:
    """LTX-2.3 with its sound, at half the size and then at the whole, as the stock template samples it."""
    workflow = Workflow("ltx23_t2v")
    checkpoint = f"{LIGHTRICKS}/LTX-2.3-fp8/resolve/main/ltx-2.3-22b-dev-fp8.safetensors"
    upscaler = f"{LIGHTRICKS}/LTX-2.3/resolve/main/ltx-2.3-spatial-upscaler-x2-1.1.safetensors"
    lora = f"{LTX_23}/loras/ltx_2.3_22b_distilled_1.1_lora_dynamic_fro09_avg_rank_111_bf16.safetensors"
    text = f"{LTX_2}/text_encoders/gemma_3_12B_it_fp4_mixed.safetensors"
    workflow.start("1. Models", 520)
    note(workflow, [checkpoint, lora, text, upscaler], TWICE)
    loaded = workflow.add("CheckpointLoaderSimple", [_file(checkpoint)], models=[checkpoint])
    distilled = workflow.add("LoraLoaderModelOnly", [_file(lora), 0.5], models=[lora], model=(loaded, "MODEL"))
    clip = workflow.add("LTXAVTextEncoderLoader", [_file(text), _file(checkpoint), "default"], models=[text, checkpoint])
    sound = workflow.add("LTXVAudioVAELoader", [_file(checkpoint)], models=[checkpoint]), "Audio VAE"
    upscale = workflow.add("LatentUpscaleModelLoader", [_file(upscaler)], models=[upscaler])
    vae = loaded, "VAE"
    workflow.start("2. SVG-EAR", 400, "#3f8f5a")
    model = workflow.add("SVGEARAttention", {"preset": "few-step"}, model=(distilled, "MODEL")), "MODEL"
    workflow.start("3. Prompt and half the size", 460)
    positive, negative = prompts(workflow, clip, PROMPT_WITH_SOUND, NEGATIVE)
    timed = workflow.add("LTXVConditioning", [24.0], positive=positive, negative=negative)
    video = workflow.add("EmptyLTXVLatentVideo", [960, 544, 241, 1])
    audio = workflow.add("LTXVEmptyLatentAudio", [241, 24.0, 1], audio_vae=sound)
    latent = workflow.add("LTXVConcatAVLatent", video_latent=(video, "LATENT"), audio_latent=(audio, "Latent"))
    workflow.start("4. Sampling, half the size and then the whole", 420)
    euler = workflow.add("KSamplerSelect", ["euler"]), "SAMPLER"
    shared = {"model": model, "sampler": euler} | {name: (timed, name) for name in ("positive", "negative")}
    first = workflow.add("ManualSigmas", ["1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875, 0.0"]), "SIGMAS"
    values = [True, 42, "fixed", 1.0]
    small = workflow.add("SamplerCustom", values, "Half the size", latent_image=(latent, "latent"), sigmas=first, **shared)
    parts = workflow.add("LTXVSeparateAVLatent", av_latent=(small, "output"))
    larger = workflow.add("LTXVLatentUpsampler", samples=(parts, "video_latent"), upscale_model=(upscale, "LATENT_UPSCALE_MODEL"), vae=vae)
    whole = workflow.add("LTXVConcatAVLatent", video_latent=(larger, "LATENT"), audio_latent=(parts, "audio_latent"))
    second = workflow.add("ManualSigmas", ["0.85, 0.7250, 0.4219, 0.0"]), "SIGMAS"
    large = workflow.add("SamplerCustom", values, "1920 x 1088", latent_image=(whole, "latent"), sigmas=second, **shared)
    workflow.start("5. Video with its sound", 480)
    parts = workflow.add("LTXVSeparateAVLatent", av_latent=(large, "output"))
    images = workflow.add("VAEDecodeTiled", [768, 64, 4096, 4], samples=(parts, "video_latent"), vae=vae)
    heard = workflow.add("LTXVAudioVAEDecode", samples=(parts, "audio_latent"), audio_vae=sound)
    made = workflow.add("CreateVideo", [24], images=(images, "IMAGE"), audio=(heard, "Audio"))
    workflow.add("SaveVideo", [f"video/{workflow.title}", "auto", "auto"], video=(made, "VIDEO"))
    workflow.start("6. What SVG-EAR did", 480, "#3f8f5a")
    for title, sampled in (("half the size", small), ("1920 x 1088", large)):
        workflow.add("SVGEARReport", title=f"SVG-EAR Report ({title})", model=model, latent=(sampled, "output"))
    workflow.save()


def minimax_h3() -> None:
    workflow = Workflow("minimax_h3")
    files = loaders(
        workflow,
        {"model": f"{MINIMAX}/diffusion_models/minimax_h3_fl2va_pruned_int8_convrot.safetensors"},
        (f"{MINIMAX}/text_encoders/qwen3vl_32b_minimax_h3_nvfp4_awq.safetensors",),
        ["minimax", "default"],
        f"{MINIMAX}/vae/minimax_h3_video_vae_fp16.safetensors",
        audio_vae=f"{MINIMAX}/vae/minimax_h3_audio_vae_fp32.safetensors",
        advice=WITH_SOUND,
    )
    workflow.start("2. SVG-EAR", 400, "#3f8f5a")
    model = workflow.add("SVGEARAttention", model=(files["model"], "MODEL")), "MODEL"
    workflow.start("3. Prompt and size (connect images for first and last frame)", 460)
    given = workflow.add(
        "MiniMaxH3ImageToVideo", [PROMPT_WITH_SOUND, 1280, 704, 124], clip=(files["clip"], "CLIP"), vae=(files["vae"], "VAE")
    )
    positive = given, "positive"
    # the model is sampled without guidance: cfg stays 1 and the negative side is never evaluated
    negative = workflow.add("ConditioningZeroOut", conditioning=positive), "CONDITIONING"
    conditions = {"positive": positive, "negative": negative}
    sampled = _one_sampler(workflow, model, (given, "LATENT"), [42, "fixed", 20, 1.0, "res_multistep", "simple", 1.0], conditions)
    output(workflow, sampled, files["vae"], 24, False, [(model, sampled)], files["audio_vae"])
    workflow.save()


def wan21_1_3b_routed_blocks() -> None:
    """The small Wan model, with everything that shows what SVG-EAR did beside the sampler."""
    workflow = Workflow("wan21_1_3b_routed_blocks")
    files = loaders(
        workflow,
        {"model": f"{WAN_21}/diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors"},
        (WAN_TEXT,),
        ["wan", "default"],
        f"{WAN_21}/vae/wan_2.1_vae.safetensors",
    )
    workflow.start("2. SVG-EAR, and what it records", 400, "#3f8f5a")
    shifted = workflow.add("ModelSamplingSD3", [8.0], model=(files["model"], "MODEL"))
    recording = workflow.add("SVGEARRecord")
    model = workflow.add("SVGEARAttention", model=(shifted, "MODEL"), recording=(recording, "recording")), "MODEL"
    workflow.start("3. Prompt and size", 460)
    positive, negative = prompts(workflow, files["clip"], PROMPT, NEGATIVE)
    size = workflow.add("EmptyHunyuanLatentVideo", [832, 480, 81, 1])
    conditions = {"positive": positive, "negative": negative}
    sampled = _one_sampler(workflow, model, (size, "LATENT"), [42, "fixed", 20, 6.0, "uni_pc", "simple", 1.0], conditions)
    workflow.start("5. What was exact: choose layer, step and head on the node", 610, "#3f8f5a")
    view = workflow.add("SVGEARRoutedBlocks", model=model, latent=sampled)
    workflow.start("6. The same as a picture, and in words", 640, "#3f8f5a")
    workflow.add("PreviewImage", images=(view, "IMAGE"))
    workflow.add("SVGEARReport", model=model, latent=sampled)
    workflow.start("7. Video", 480)
    images = workflow.add("VAEDecode", samples=(view, "LATENT"), vae=(files["vae"], "VAE"))
    video = workflow.add("CreateVideo", [16], images=(images, "IMAGE"))
    workflow.add("SaveVideo", [f"video/{workflow.title}", "auto", "auto"], video=(video, "VIDEO"))
    workflow.save()


def wan21_1_3b_calibrate() -> None:
    """Dense runs of the small Wan model, from which a calibration is saved."""
    workflow, files, conditions, size = _small_wan("wan21_1_3b_calibrate", GATHER)
    workflow.start("3. Calibrate", 400, "#3f8f5a")
    shifted = workflow.add("ModelSamplingSD3", [8.0], model=(files["model"], "MODEL"))
    model = workflow.add("SVGEARCalibrate", model=(shifted, "MODEL")), "MODEL"
    sampled = _one_sampler(workflow, model, (size, "LATENT"), [42, "randomize", 20, 6.0, "uni_pc", "simple", 1.0], conditions)
    workflow.start("5. Run it with four prompts or more", 480, "#3f8f5a")
    workflow.add("SVGEARSaveCalibration", {"name": CALIBRATION}, model=model, latent=sampled)
    _video(workflow, sampled, files["vae"], "6. Video")
    workflow.save()


def wan21_1_3b_calibrated() -> None:
    """The small Wan model with the calibration that the other workflow saved."""
    workflow, files, conditions, size = _small_wan("wan21_1_3b_calibrated", FOLLOW)
    workflow.start("3. SVG-EAR with a calibration", 400, "#3f8f5a")
    shifted = workflow.add("ModelSamplingSD3", [8.0], model=(files["model"], "MODEL"))
    loaded = workflow.add("SVGEARLoadCalibration", {"name": f"{CALIBRATION}.safetensors"}, "SVG-EAR Load Calibration (calibrate first)")
    patched = workflow.add("SVGEARAttention", {"preset": "custom"}, model=(shifted, "MODEL"), settings=(loaded, "settings"))
    model = patched, "MODEL"
    sampled = _one_sampler(workflow, model, (size, "LATENT"), [42, "fixed", 20, 6.0, "uni_pc", "simple", 1.0], conditions)
    output(workflow, sampled, files["vae"], 16, False, [(model, sampled)])
    workflow.save()


def wan21_1_3b_compare() -> None:
    """The small Wan model dense and sparse, from the same noise."""
    workflow, files, conditions, size = _small_wan("wan21_1_3b_compare", SIDE_BY_SIDE)
    workflow.start("3. Dense, timed", 400)
    shifted = workflow.add("ModelSamplingSD3", [8.0], model=(files["model"], "MODEL")), "MODEL"
    dense = workflow.add("SVGEARAttention", {"dense_first_steps": 10000}, "SVG-EAR, all steps dense", model=shifted), "MODEL"
    workflow.start("4. SVG-EAR", 400, "#3f8f5a")
    sparse = workflow.add("SVGEARAttention", model=shifted), "MODEL"
    workflow.start("5. Sampling, the same for both", 380)
    shared = {
        "noise": (workflow.add("RandomNoise", [42, "fixed"]), "NOISE"),
        "sampler": (workflow.add("KSamplerSelect", ["euler"]), "SAMPLER"),
        "sigmas": (workflow.add("BasicScheduler", ["simple", 20, 1.0], model=shifted), "SIGMAS"),
        "latent_image": (size, "LATENT"),
    }
    sampled, clips = {}, {}
    for name, model in (("dense", dense), ("sparse", sparse)):
        guider = workflow.add("CFGGuider", [6.0], f"CFGGuider ({name})", model=model, **conditions), "GUIDER"
        sampler = workflow.add("SamplerCustomAdvanced", [], f"Sampler ({name})", guider=guider, **shared)
        sampled[name] = sampler, "output"
    workflow.start("6. How close, how fast", 520, "#3f8f5a")
    for name, latent in sampled.items():
        decoded = workflow.add("VAEDecode", [], f"VAE Decode ({name})", samples=latent, vae=(files["vae"], "VAE"))
        clips[name] = decoded, "IMAGE"
    of_runs = {"dense_model": dense, "dense_latent": sampled["dense"], "sparse_model": sparse, "sparse_latent": sampled["sparse"]}
    compared = workflow.add("SVGEARCompare", [], **clips, **of_runs)
    workflow.add("SVGEARReport", [], model=sparse, latent=sampled["sparse"])
    workflow.start("7. Side by side, dense on the left", 640)
    video = workflow.add("CreateVideo", [16], images=(compared, "IMAGE"))
    workflow.add("SaveVideo", [f"video/{workflow.title}", "auto", "auto"], video=(video, "VIDEO"))
    workflow.save()


def _small_wan(title: str, advice: str = COMPARE) -> tuple[Workflow, dict, dict, dict]:
    """A workflow with the loaders and the prompt of Wan 2.1 1.3B at 480p: itself, files, conditions, size."""
    workflow = Workflow(title)
    files = loaders(
        workflow,
        {"model": f"{WAN_21}/diffusion_models/wan2.1_t2v_1.3B_fp16.safetensors"},
        (WAN_TEXT,),
        ["wan", "default"],
        f"{WAN_21}/vae/wan_2.1_vae.safetensors",
        advice=advice,
    )
    workflow.start("2. Prompt and size", 460)
    positive, negative = prompts(workflow, files["clip"], PROMPT, NEGATIVE)
    size = workflow.add("EmptyHunyuanLatentVideo", [832, 480, 81, 1])
    return workflow, files, {"positive": positive, "negative": negative}, size


def _video(workflow: Workflow, latent: tuple, vae: dict, title: str) -> None:
    workflow.start(title, 480)
    images = workflow.add("VAEDecode", samples=latent, vae=(vae, "VAE"))
    video = workflow.add("CreateVideo", [16], images=(images, "IMAGE"))
    workflow.add("SaveVideo", [f"video/{workflow.title}", "auto", "auto"], video=(video, "VIDEO"))


def _one_model(workflow: Workflow, files: dict, shift: float) -> tuple:
    workflow.start("2. SVG-EAR", 400, "#3f8f5a")
    shifted = workflow.add("ModelSamplingSD3", [shift], model=(files["model"], "MODEL"))
    return workflow.add("SVGEARAttention", model=(shifted, "MODEL")), "MODEL"


def _one_sampler(workflow: Workflow, model: tuple, latent: tuple, values: list, conditions: dict) -> tuple:
    workflow.start("4. Sampling", 380)
    return workflow.add("KSampler", values, model=model, latent_image=latent, **conditions), "LATENT"


def _file(address: str) -> str:
    return address.rsplit("/", 1)[1]


WAN_TEXT = f"{WAN_21}/text_encoders/umt5_xxl_fp8_e4m3fn_scaled.safetensors"
PROMPT = (
    "A red fox trots along a rocky shore at sunrise, waves breaking behind it, the camera tracking it from the side, "
    "warm low light, wet fur and drifting spray in fine detail."
)
PROMPT_WITH_SOUND = f"{PROMPT} Waves break with a low rumble and gulls call above them."
MOTION_PROMPT = "The scene comes to life: gentle natural motion, a slow camera push-in, steady light."
NEGATIVE = (
    "blurry, low quality, jpeg artifacts, overexposed, static, still picture, subtitles, watermark, deformed hands, "
    "extra fingers, extra limbs, cluttered background, walking backwards"
)

if __name__ == "__main__":
    every = (
        wan22_14b_t2v,
        wan21_14b_i2v,
        wan22_5b_ti2v,
        hunyuan_video_t2v,
        hunyuan_video_15_t2v,
        ltx23_t2v,
        minimax_h3,
        wan21_1_3b_routed_blocks,
        wan21_1_3b_calibrate,
        wan21_1_3b_calibrated,
        wan21_1_3b_compare,
    )
    for build in every:
        build()
