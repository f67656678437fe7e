#!/bin/sh
# Plants defects in a copy of the sources, one at a time, runs the tests that are to find
# each, and says which caught it. Ends with 1 if one was not caught.
# Needs what `make` builds; takes a quarter of an hour.
#
# A name begins with what the defect breaks, by the numbers that the method's specification has: 1 the
# operator, 2 examples, 3 losses, 4 options and the iteration, 5 the notebook's runs, 6 noise, 7 the
# output-constrained stage, 8 utilities, 10 automatic scales; r is resuming, l L-BFGS, d slots of
# a decoder.
#
#   plant-defects.sh [WORDS]    only those with WORDS in their name
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | xargs -0 tar cf - | tar xf - -C "$copy"
cp -a build bin "$copy"
CGO_CFLAGS="-O2 -DSTEER_H_SUM=$(cksum csrc/steer.h | cut -d' ' -f1)"
export CGO_CFLAGS
missed=0
words=${1:-}

# run PACKAGE TESTS: what the tests of the copy say whose names fit the pattern
run() {
    (cd "$copy" && go test -vet=off -count=1 -timeout 5m -run "$2" "./$1" 2>&1) || :
}

# put FILE FROM: the copy's FILE becomes FROM, and is compiled if it is C++
put() {
    cp "$2" "$copy/$1"
    case $1 in csrc/*) make -s -C "$copy" bin/libllsteer.so >/dev/null ;; esac
}

# plant WHAT TESTS FILE FROM TO: the first line that has FROM, a fixed text, gets TO in its place
plant() {
    what=$1 tests=$2 file=$3
    case $what in *"$words"*) ;; *) return 0 ;; esac
    package=$(dirname "$file")
    if [ "$package" = csrc ]; then package=ggmlsteer; fi
    FROM=$4 TO=$5 awk '!done && (at = index($0, ENVIRON["FROM"])) {
        $0 = substr($0, 1, at - 1) ENVIRON["TO"] substr($0, at + length(ENVIRON["FROM"])); done = 1
    } { print } END { exit !done }' "$file" > "$copy/planted" || { echo "plant-defects.sh: $file has no line with: $4" >&2; exit 1; }
    put "$file" "$copy/planted"
    output=$(run "$package" "$tests")
    put "$file" "$file"
    case $output in
    *'[build failed]'* | *'[setup failed]'*) echo "plant-defects.sh: with the defect '$what' it does not compile" >&2; exit 1 ;;
    esac
    caught=$(echo "$output" | sed -n 's/^--- FAIL: \([^ ]*\).*/\1/p; s/^ *--- FAIL: \(TestScripts\/[^ ]*\).*/\1/p' | sort -u | tr '\n' ' ')
    if [ -n "$caught" ]; then
        printf '%-58s caught by %s\n' "$what" "$caught"
    else
        printf '%-58s NOT CAUGHT\n' "$what"
        missed=1
    fi
}

# Tests that fail by themselves would catch anything.
tests=$(sed -n "s/^plant '[^']*' *'\([^']*\)' .*/\1/p" scripts/plant-defects.sh | tr '|' '\n' | sort -u | paste -sd '|')
for package in optimize ggmlsteer loader cmd/llsteer; do
    output=$(run "$package" "$tests")
    case $output in ok*) ;; *) echo "$output" | grep '^ *--- FAIL' >&2; exit 1 ;; esac
done

plant '1 add: twice the vector'                                      'TestSpecifiedLogprobs'      ggmlsteer/operation.go   'return Operation{Vectors: [][]float32{p.Vector}}' 'return Operation{Vectors: [][]float32{p.Vector, p.Vector}}'
plant '1 affine: M is RᵀL'                                           'TestSpecifiedLogprobs'      ggmlsteer/operation.go   'Left: p.Left, Right: p.Right}' 'Left: p.Right, Right: p.Left}'
plant '1 affine: the vector is left out'                             'TestSpecifiedLogprobs'      ggmlsteer/operation.go   'return Operation{Vectors: [][]float32{p.Vector}, Left' 'return Operation{Left'
plant '1 ablate: adds'                                               'TestSpecifiedLogprobs|TestAblation' ggmlsteer/operation.go   'right[i] = float32(-float64(v) / square)' 'right[i] = float32(float64(v) / square)'
plant '1 ablate: by the norm and not its square'                     'TestSpecifiedLogprobs|TestAblation' ggmlsteer/operation.go   'square += float64(v) * float64(v)' 'square = max(square, float64(v) * float64(v))'
plant '1 clamp: c is 1'                                              'TestSteeringIdentities'     ggmlsteer/operation.go   'float32(clamp * float64(v))' 'float32(float64(v) + 0*clamp)'
plant '1 clamp: v = 0 divides by 0'                                  'TestSteeringIdentities'     ggmlsteer/operation.go   'if square == 0 {' 'if false {'
plant '1 strength: of the matrix it is that of another'              'TestSpecifiedLogprobs'      ggmlsteer/decoder.go     'append(sRows, C.int32_t(k))' 'append(sRows, C.int32_t(0*k))'
plant '1 strength: a negative one is positive'                       'TestSpecifiedLogprobs'      ggmlsteer/decoder.go     'C.float(f.strength)' 'C.float(max(f.strength, -f.strength))'
plant '1 clamp: a term of the projection is missing'                 'TestSpecifiedEvaluations'   optimize/kinds.go        '2*along*float64(v)' '0*along*float64(v)'
plant '1 clamp: the projection is detached'                          'TestSpecifiedEvaluations'   optimize/kinds.go        'float64(g.Left[0][n]) - float64(g.Right[0][n])/square + 2*along' 'float64(g.Left[0][n]) + 0*along'
plant '1 clamp: c·v is forgotten in the gradient'                    'TestSpecifiedEvaluations'   optimize/kinds.go        'sum[n] += clamp * float64(g.Vectors[0][n])' '_ = clamp'
plant '1 clamp of 0 is no ablation'                                  'TestSpecifiedEvaluations'   optimize/kinds.go        'case *o.VectorClamp == 0:' 'case false:'
plant '1 a start at v = 0 is not refused'                            'TestStart'                  optimize/parameters.go   'case projects(j.Kind()) && norm(given.Vector) == 0:' 'case false:'
plant '1 a starting_norm of 0 is not refused'                        'TestCombinations'           optimize/job.go          '*j.StartingNorm == 0' 'false'
plant '1 layers: a shared vector has the gradient of one'            'TestSpecifiedEvaluations'   optimize/objective.go    'axpy(1, row, gradients[k][o.owner(i)][r])' 'copy(gradients[k][o.owner(i)][r], row)'
plant '1 layers: the second has the vector of the first'          'TestReference'              optimize/objective.go    '	return i' '	return 0 * i'
plant '1 mask: prompt-only is off by one'                            'TestStrengths'              optimize/completion.go   'return i < c.prompt' 'return i <= c.prompt'
plant '1 mask: prompt-only does not replace token'                   'TestStrengths'              optimize/completion.go   'case j.OnlyHookPrompt:' 'case j.OnlyHookPrompt && e.Token == nil:'
plant '1 mask: an index counts over the prompt'                      'TestStrengths'              optimize/completion.go   'e.Token.mask(len(c.tokens))' 'e.Token.mask(c.prompt)'
plant '1 mask: an index from the end is off by one'                  'TestStrengths'              optimize/span.go         'if at < 0 || at >= n {' 'if at--; at < 0 || at >= n {'
plant '1 mask: an index out of range is clipped'                     'TestCompletions'            optimize/span.go         'if at < 0 || at >= n {' 'if at = min(max(at, 0), n-1); false {'
plant '1 mask: a slice is not clipped'                               'TestSlices'                 optimize/span.go         'low, high = -1, n-1' 'low, high = 0, n-1'
plant '1 mask: a slice takes its end'                                'TestSlices'                 optimize/span.go         'step > 0 && at < stop' 'step > 0 && at <= min(stop, n-1)'
plant '1 mask: a step is ignored'                                    'TestSlices'                 optimize/span.go         'step = *s.Step' 'step = *s.Step / max(*s.Step, -*s.Step)'
plant '1 control vectors: direction.N is layer N'                    'TestControlVectorsAreLlamaCpps' loader/controlvector.go  'return layer - 1 ' 'return layer '
plant '1 control vectors: layer 1 is expressible'                    'TestWhatNoControlVector'    loader/controlvector.go  'firstExpressible = 2' 'firstExpressible = 1'
plant '1 control vectors: one kind of file is a layer off'           'TestNumberings|TestControlVectors' loader/controlvector.go  'return direction + 1' 'return direction'
plant '2 a prompt is not required'                                   'TestJobFileErrors'          optimize/jobfile.go      'if lines["prompt"] == nil {' 'if false {'
plant '2 an example without completions'                             'TestValidate'               optimize/job.go          'if len(e.Src)+len(e.Dst) == 0 {' 'if false {'
plant '2 src and dst change places'                                  'TestReference'              optimize/completion.go   'return c.side == 0' 'return c.side == 1'
plant '2 own targets: that of the first for all'                     'TestSpecifiedEvaluations'   optimize/completion.go   'c.target = &s.targets[k]' 'c.target = &s.targets[0]'
plant '2 own targets are ignored'                                    'TestSpecifiedEvaluations'   optimize/completion.go   'if s.targets != nil {' 'if false {'
plant '2 token is ignored'                                           'TestStrengths'              optimize/completion.go   'case e.Token != nil:' 'case false:'
plant '2 a negative example is not negative'                         'TestStrengths'              optimize/completion.go   'signed[k] = -factor' 'signed[k] = factor'
plant '2 a negative example turns the matrix'                        'TestSpecifiedEvaluations'   optimize/completion.go   'vector, row := signed, c.mask' 'vector, row := signed, signed'
plant '2 the completion is tokenized alone'                          'TestCompletions'            optimize/completion.go   'return m.Tokenize(prompt+completion, j.ParseSpecial)' 'a, _ := m.Tokenize(prompt, false); b, err := m.Tokenize(completion, false); return append(a, b[1:]...), err'
plant '2 a completion without tokens is taken'                       'TestCompletions'            optimize/completion.go   'if n <= c.prompt {' 'if n < c.prompt {'
plant '2 a prompt without tokens is taken'                           'TestCompletions'            optimize/completion.go   'if len(prompt) == 0 {' 'if false {'
plant '2 control tokens are parsed'                                  'TestCompletions'            optimize/completion.go   'return m.Tokenize(prompt+completion, j.ParseSpecial)' 'return m.Tokenize(prompt+completion, true)'
plant '2 control tokens of the prompt are parsed'                    'TestCompletions'            optimize/completion.go   'return m.Tokenize(prompt, j.ParseSpecial)' 'return m.Tokenize(prompt, true)'
plant '2 control tokens that are asked for are plain'                'TestCompletions'            optimize/completion.go   'return m.Tokenize(prompt, j.ParseSpecial)' 'return m.Tokenize(prompt, false)'
plant '3 dst: without ε'                                             'TestTokenLoss'              optimize/loss.go         'sum := logAdd(p.Log, logEps)' 'sum := p.Log'
plant '3 dst: the slope without ε'                                   'TestTokenLoss'              optimize/loss.go         'loss, slope = sum, math.Exp(p.Log-sum)' 'loss, slope = sum, 1'
plant '3 dst: the other sign'                                        'TestReference'              optimize/loss.go         'if !src {' 'if src {'
plant '3 src: one-minus without ε'                                   'TestTokenLoss'              optimize/loss.go         'complement := logAdd(p.LogComplement, logEps)' 'complement := p.LogComplement'
plant '3 src: one-minus with the other sign'                         'TestReference'              optimize/loss.go         'return -complement, math.Exp' 'return -complement, -math.Exp'
plant '3 src: one-minus from p, without digits near 1'               'TestTokenLoss'              optimize/loss.go         'logAdd(p.LogComplement, logEps)' 'logAdd(math.Log(float64(1-float32(math.Exp(p.Log)))), logEps)'
plant '3 src: do_one_minus=false is ignored'                         'TestReference'              optimize/loss.go         'if src && o.DoOneMinus {' 'if src {'
plant '3 normalization of the loss is forgotten'                     'TestReference'              optimize/loss.go         'loss /= float64(len(probs))' ''
plant '3 normalization of the gradient is forgotten'                 'TestReference'              optimize/loss.go         'slopes[i] /= float64(len(probs))' '_ = slopes[i]'
plant '3 satisfice without its factor'                               'TestReference'              optimize/loss.go         'return 2 * (loss - *target)' 'return loss - *target'
plant '3 satisfice with the other sign'                              'TestReference'              optimize/loss.go         'return 2 * (loss - *target)' 'return 2 * (*target - loss)'
plant '3 satisfice changes the reported loss'                        'TestSatisfice'              optimize/objective.go    'losses[i] += now[i] / float64(draws)' 'losses[i] += now[i] / float64(draws); if o.job.Satisfice { losses[i] = (now[i] - *c.target) * (now[i] - *c.target) }'
plant '3 coldness is 1'                                              'TestReference'              optimize/objective.go    'Coldness: o.job.Coldness' 'Coldness: 1'
plant '3 the total is that of the first completion'                  'TestReference'              optimize/objective.go    '		e.loss += loss' '		e.loss += loss; break'
plant '3 the gradient forgets κ'                                     'TestReferenceCases$'        csrc/softmax.cpp         '(float) (w->weight*coldness)' '(float) w->weight'
plant '3 p − onehot in place of onehot − p'                          'TestReferenceCases$'        csrc/softmax.cpp         '(float) (-total*coldness/sum)' '(float) (total*coldness/sum)'
plant '3 1 − p is not accurate near p = 1'                           'TestComplementNearOne' csrc/softmax.cpp         't->token == top ? std::log(others) - std::log(sum)' 't->token == top ? std::log(1.0f - (float) (e[top]/sum))'
plant '3 the probability after the token'                            'TestReferenceCases$'        csrc/tree.h              'index + i + 1 - n_prompt, tokens[i + 1], -1' 'index + i + 1 - n_prompt, tokens[i], -1'
plant '4 adam: β₁ is 0.8'                                            'TestTenSteps'               optimize/adam.go         'beta1: 0.9,' 'beta1: 0.8,'
plant '4 adam: β₂ is 0.99'                                           'TestTenSteps'               optimize/adam.go         'beta2: 0.999,' 'beta2: 0.99,'
plant '4 adam: ε is 1e-6'                                            'TestAdam'                   optimize/adam.go         'eps: 1e-8}' 'eps: 1e-6}'
plant '4 adam: ε inside the root'                                    'TestAdam'                   optimize/adam.go         '(math.Sqrt(second[n]/bias2) + a.eps)' 'math.Sqrt(second[n]/bias2 + a.eps)'
plant '4 adam: moments are corrected for a step too many'            'TestAdam'                   optimize/adam.go         'math.Pow(a.beta2, float64(a.Steps))' 'math.Pow(a.beta2, float64(a.Steps+1))'
plant '4 adam: the first moment is not corrected'                    'TestAdam'                   optimize/adam.go         'first[n] / bias1' 'first[n] + 0*bias1'
plant '4 adam: moments are reset after each step'                    'TestTenSteps'               optimize/adam.go         'if k == len(a.First) {' 'if clear(a.First); k == len(a.First) {'
plant '4 adam: weight decay'                                         'TestTenSteps'               optimize/adam.go         'g := float64(slopes[j][n])' 'g := float64(slopes[j][n]) + 0.01*float64(row[n])'
plant '4 adam: one lr for all layers'                                'TestAdam|TestAutoLR'        optimize/adam.go         'move := a.lr[i]' 'move := a.lr[0]'
plant '4 default: coldness 1'                                        'TestOptionDefaults'         optimize/options.go      '0.7,' '1,'
plant '4 default: ε 1e-5'                                            'TestOptionDefaults'         optimize/options.go      '1e-6,' '1e-5,'
plant '4 default: do_target_loss_sum false'                          'TestOptionDefaults'         optimize/options.go      'DoTargetLossSum:       true' 'DoTargetLossSum:       false'
plant '4 default: do_one_minus false'                                'TestOptionDefaults'         optimize/options.go      'DoOneMinus:            true' 'DoOneMinus:            false'
plant '4 default: patience 2'                                        'TestOptionDefaults'         optimize/options.go      'TargetLossTargetIters: 1' 'TargetLossTargetIters: 2'
plant '4 default: max_affine_norm 1'                                 'TestOptionDefaults'         optimize/options.go      'MaxAffineNorm:         2' 'MaxAffineNorm:         1'
plant '4 default: noise_iters 2'                                     'TestOptionDefaults'         optimize/options.go      'NoiseIters:            1' 'NoiseIters:            2'
plant '4 default: no tangent space'                                  'TestOptionDefaults'         optimize/options.go      'DoTangentSpaceNoise:   true' 'DoTangentSpaceNoise:   false'
plant '4 default: minibatch_size 4'                                  'TestOptionDefaults'         optimize/options.go      'MinibatchSize:         5' 'MinibatchSize:         4'
plant '4 default: regularization max'                                'TestOptionDefaults'         optimize/options.go      '"l1",' '"max",'
plant '4 default: regularization_weight 0.1'                         'TestOptionDefaults'         optimize/options.go      'RegularizationWeight:  0.01' 'RegularizationWeight:  0.1'
plant '4 default: sparsity_weight 0.01'                              'TestOptionDefaults'         optimize/options.go      'SparsityWeight:        0.1' 'SparsityWeight:        0.01'
plant '4 default: entropy_weight 0.1'                                'TestOptionDefaults'         optimize/options.go      'EntropyWeight:         0.01' 'EntropyWeight:         0.1'
plant '4 starting_norm is ignored'                                   'TestMaxNorm'                optimize/scale.go        'start = *j.StartingNorm * unit' 'start = unit'
plant '4 a start is no unit long'                                    'TestRelativeScale'          optimize/scale.go        'start = unit' 'start = 1'
plant '4 the norm of a random start'                                 'TestRandomStart'            optimize/parameters.go   'x * length / math.Sqrt(square)' 'x * length / math.Sqrt(float64(embd))'
plant '4 starting_vec is ignored'                                    'TestReference'              optimize/parameters.go   'if given, ok := j.Start[key]; ok {' 'if given, ok := j.Start[key]; ok && len(key) > 9 {'
plant '4 starting_affine_norm is ignored'                            'TestAffineStart'            optimize/parameters.go   'return *j.StartingAffineNorm' 'return 1'
plant '4 starting_affine_norm beside a number lr'                    'TestAffineStart'            optimize/parameters.go   '	return 1' '	return 0.1'
plant '4 rows of L and R start alike'                                'TestAffineStart'            optimize/parameters.go   'j.Seed, stream+1<<32' 'j.Seed, stream'
plant '4 max_norm is ignored'                                        'TestMaxNorm'                optimize/run.go          'if d.job.MaxNorm != nil {' 'if false {'
plant '4 max_norm lengthens'                                         'TestMaxNorm'                optimize/parameters.go   'if n <= most {' 'if n == 0 {'
plant '4 max_norm touches the start'                                 'TestMaxNorm'                optimize/run.go          'if d.Shrinking != nil {' 'if d.limit(d.Params); d.Shrinking != nil {'
plant '4 max_norm is shared among the vectors'                       'TestSpecifiedDescents/.*max_norm' optimize/run.go          '*d.job.MaxNorm*d.scales.units[i]' '*d.job.MaxNorm*d.scales.units[i]/float64(len(params))'
plant '4 max_norm resets a moment'                                   'TestSpecifiedDescents/.*max_norm' optimize/run.go          'limit(p.Vector, *d.job.MaxNorm' 'if a, is := d.Optimizer.(*adam); is { clear(a.First[i]) }; limit(p.Vector, *d.job.MaxNorm'
plant '4 max_affine_norm is ignored'                                 'TestSpecifiedDescents/gemma2_affine' optimize/run.go          'limit(row, d.job.MaxAffineNorm)' '_ = row'
plant '4 target: met when below'                                     'TestStopRules'              optimize/run.go          'step.Loss <= *s.job.TargetLoss' 'step.Loss < *s.job.TargetLoss'
plant '4 target: each own, met when below'                           'TestStopRules'              optimize/run.go          '[c.index] <= *c.target' '[c.index] < *c.target'
plant '4 target: each own, the last decides'                         'TestStopRules'              optimize/run.go          '			return false' '			_ = false'
plant '4 target: do_target_loss_sum=false is ignored'                'TestStopRules'              optimize/run.go          'if s.job.DoTargetLossSum {' 'if true {'
plant '4 patience of the target never resets'                        'TestStopRules'              optimize/run.go          '		s.Met = 0' '		s.Met--'
plant '4 patience of the stall never resets'                         'TestStopRules'              optimize/run.go          '		s.Still = 0' '		s.Still--'
plant '4 patience of the target is 1'                                'TestStopRules'              optimize/run.go          'case s.Met >= patience:' 'case s.Met >= 1:'
plant '4 patience of the stall is 1'                                 'TestStopRules'              optimize/run.go          'case s.Still >= patience:' 'case s.Still >= 1:'
plant '4 stall: a change of ε is one'                                'TestStoppingAtEquality'     optimize/run.go          '!(math.Abs(step.Loss-s.Previous) < s.job.Eps)' '!(math.Abs(step.Loss-s.Previous) <= s.job.Eps)'
plant '4 stall: a rising loss is one'                                'TestStoppingAtEquality|TestStopRules' optimize/run.go          'math.Abs(step.Loss-s.Previous)' 'max(0, step.Loss-s.Previous, -math.MaxFloat64)'
plant '4 max_iters: a step too many'                                 'TestStopRules'              optimize/run.go          'step.Iter >= *s.job.MaxIters' 'step.Iter > *s.job.MaxIters'
plant '4 max_iters goes before the target'                           'TestStopRules'              optimize/run.go          'case s.Met >= patience:' 'case s.Met >= patience && (s.job.MaxIters == nil || step.Iter < *s.job.MaxIters):'
plant '4 the parameters after the step are returned'                 'TestResult'                 optimize/run.go          'if reason := d.Stopping.reason(step, d.objective.completions); reason != "" {' 'if reason := d.Stopping.reason(step, d.objective.completions); reason != "" { d.Optimizer.step(step.params())'
plant '4 iters counts evaluations'                                   'TestStopRules'              optimize/run.go          'return d.result(last, last.Iter,' 'return d.result(last, last.Iter+1,'
plant '4 an interrupt returns the last parameters'                   'TestInterrupt'              optimize/run.go          'd.Best == nil || step.Loss < d.Best.Loss' 'true'
plant '4 an interrupt counts a step too many'                        'TestInterrupt'              optimize/run.go          'return d.result(d.Best, d.Iter-1,' 'return d.result(d.Best, d.Iter,'
plant '4 norms: those of the first layer'                            'TestResult'                 optimize/run.go          'r.Norms[l.Layer] = l.Norm' 'r.Norms[l.Layer] = step.Layers[0].Norm'
plant '4 losses: nested by completion alone'                         'TestReference'              optimize/objective.go    'nested[c.example][c.side][c.index] = losses[i]' 'nested[c.example][c.side][0] = losses[i]'
plant '4 l1: a component at 0 has a slope'                           'TestRegularizersAtZero'     optimize/regularizer.go  'case magnitude == 0:' 'case magnitude < 0:'
plant '4 l1: the sign is lost'                                       'TestReference'              optimize/regularizer.go  'math.Copysign(o.RegularizationWeight, x)' 'o.RegularizationWeight'
plant '4 l1: not in the total'                                       'TestReference'              optimize/regularizer.go  'total += o.RegularizationWeight * term' '_ = term'
plant '4 max: is l1'                                                 'TestReference'              optimize/regularizer.go  'term = top' '_ = top'
plant '4 max: its gradient is that of l1'                            'TestReference'              optimize/regularizer.go  'case o.RegularizationType != "max":' 'case true:'
plant '4 sparsity: not in the total'                                 'TestReference|TestTotal'    optimize/regularizer.go  'total += o.SparsityWeight * norms[i]' ''
plant '4 sparsity: not in the gradient'                              'TestReference'              optimize/regularizer.go  '(o.SparsityWeight + o.EntropyWeight*slopes[i])' '(0 + o.EntropyWeight*slopes[i])'
plant '4 sparsity: a zero vector has a slope'                        'TestRegularizersAtZero'     optimize/regularizer.go  'if norms[i] == 0 {' 'if norms[i] < 0 {'
plant '4 entropy: not in the total'                                  'TestReference'              optimize/regularizer.go  'total += o.EntropyWeight * entropy' '_ = entropy'
plant '4 entropy: with the other sign'                               'TestReference'              optimize/regularizer.go  'gradient[i] = -math.Exp' 'gradient[i] = math.Exp'
plant '4 entropy: of the norms without softmax'                      'TestReference'              optimize/regularizer.go  'sum = logAdd(sum, xi)' 'sum = max(sum, xi)'
plant '4 regularizers: of one vector, too'                           'TestTotal'                  optimize/objective.go    'return len(o.layers) > 1 && !o.job.Shared' 'return true'
plant '4 regularizers: not in the total'                             'TestTotal'                  optimize/objective.go    'e.loss += terms' '_ = terms'
plant '4 regularizers: not in the gradient'                          'TestReference'              optimize/objective.go    'axpy(1, slopes[i], sum[i][0])' 'axpy(0, slopes[i], sum[i][0])'
plant '4 regularizers: slopes in no units'                           'TestRelativeScale'          optimize/objective.go    'scale(slopes[i], 1/o.units[i])' 'scale(slopes[i], 1)'
plant '4 max_norm in no units'                                       'TestRelativeScale'          optimize/run.go          '*d.job.MaxNorm*d.scales.units[i]' '*d.job.MaxNorm+0*d.scales.units[i]'
plant '4 minibatch: the window starts one late'                      'TestSpecifiedDescents/gemma2_minibatch' optimize/objective.go    '(iter*o.job.MinibatchSize + k) % n' '(iter*o.job.MinibatchSize + k + 1) % n'
plant '4 minibatch: the window moves by one'                         'TestSpecifiedDescents/gemma2_minibatch' optimize/objective.go    '(iter*o.job.MinibatchSize + k) % n' '(iter + k) % n'
plant '4 minibatch: the window does not wrap'                        'TestSpecifiedDescents/gemma2_minibatch' optimize/objective.go    '(iter*o.job.MinibatchSize + k) % n' 'min(iter*o.job.MinibatchSize + k, n-1)'
plant '4 minibatch: the reported loss is the sum'                    'TestSpecifiedDescents/gemma2_minibatch' optimize/objective.go    'e.loss /= float64(o.prompts)' ''
plant '4 minibatch: the gradient is of the mean'                     'TestSpecifiedDescents/gemma2_minibatch' optimize/objective.go    'e.gradient = parametersOf(sum)' 'if o.prompts > 0 { for i := range sum { scale(sum[i][0], 1/float64(o.prompts)) } }; e.gradient = parametersOf(sum)'
plant '4 return_loss_history: a step is missing'                     'TestScripts/optimize'       cmd/llsteer/report.go    'func (t *trace) step(s optimize.Step) {' 'func (t *trace) step(s optimize.Step) { if s.Iter == 2 { return }'
plant '4 return_vec_history: the gradient for the vector'            'TestTrace'                  cmd/llsteer/report.go    '&traceTensors{l.Params.Vector, l.Gradient.Vector' '&traceTensors{l.Gradient.Vector, l.Params.Vector'
plant '5 the notebook: another step size'                            'TestNotebook'               cmd/llsteer/reproduce.go 'notebookLR      = 0.1' 'notebookLR      = 0.2'
plant '5 the notebook: reproduce forgets to clamp'                   'TestScripts/reproduce'      cmd/llsteer/reproduce.go '+"="); is {' '+"="); is && o.Name != "vector_clamp" {'
plant '5 the notebook: another entropy weight'                       'TestNotebook'               cmd/llsteer/reproduce.go '"entropy_weight=10"' '"entropy_weight=1"'
plant '5 the notebook: another number of theirs'                     'TestNotebook'               cmd/llsteer/reproduce.go 'Loss: 2.852' 'Loss: 2.652'
plant '5 the notebook: another target'                               'TestNotebook'               cmd/llsteer/reproduce.go '{"target_loss=3"}' '{"target_loss=4"}'
plant '5 the notebook: another output_constr_lr'                     'TestNotebook'               cmd/llsteer/reproduce.go 'output_constr_lr=0.059' 'output_constr_lr=0.59'
plant '6 noise_scale is 1'                                           'TestSpecifiedDescents/gemma2_noise' optimize/noise.go        'n[i] *= *z.job.NoiseScale' 'n[i] *= 1'
plant '6 loss: draws are not averaged'                               'TestSpecifiedDescents/gemma2_noise' optimize/objective.go    'losses[i] += now[i] / float64(draws)' 'losses[i] += now[i]'
plant '6 gradient: draws are not averaged'                           'TestSpecifiedDescents/gemma2_noise' optimize/objective.go    'c.target)/float64(draws))' 'c.target))'
plant '6 noise_iters is 1'                                           'TestSpecifiedDescents/gemma2_noise' optimize/objective.go    'draws = o.job.NoiseIters' 'draws = 1'
plant '6 noise moves the returned vector'                            'TestSpecifiedDescents/gemma2_noise' optimize/noise.go        'sets[i] = slices.Clone(params)' 'sets[i] = params'
plant '6 draws are those of each run'                                'TestSeeded'                 optimize/noise.go        'rand.NewPCG(seed, h.Sum64())' 'rand.NewPCG(0*seed, h.Sum64())'
plant '6 draws are those of each step'                               'TestSeeded'                 optimize/noise.go        '[]int{at.iter, at.draw' '[]int{0, at.draw'
plant '6 draws of one evaluation are the same'                       'TestSeeded'                 optimize/noise.go        '[]int{at.iter, at.draw' '[]int{at.iter, 0'
plant '6 draws are those of each completion'                         'TestSeeded'                 optimize/noise.go        'at.completion, at.params}' '0, at.params}'
plant '6 draws are those of each layer'                              'TestSeeded'                 optimize/noise.go        'at.completion, at.params}' 'at.completion, 0}'
plant '6 draws are uniform'                                          'TestSeeded'                 optimize/noise.go        'random.NormFloat64()' '2*random.Float64() - 1'
plant '6 tangent: projection dropped'                                'TestSpecifiedDescents/gemma2_noise' optimize/noise.go        'case z.tangents != nil:' 'case false:'
plant '6 tangent: keeps the tangent'                                 'TestSpecifiedDescents/gemma2_noise' optimize/noise.go        'n[i] -= along / square * g[i]' 'n[i] += along / square * g[i]'
plant '6 tangent: a scalar from every component'                     'TestSpecifiedDescents/gemma2_noise' optimize/noise.go        'n[i] -= along / square * g[i]' 'n[i] -= along / square'
plant '6 tangent: not at v = 0'                                      'TestSpecifiedDescents/gemma2_noise' optimize/noise.go        'clear(row)' '_ = row'
plant '6 tangent: of the satisficed loss'                            'TestSpecifiedDescents/gemma2_noise' optimize/noise.go        'gradients, err := o.backward(ctx, sets, slopes)' 'for i, c := range o.completions { scale(slopes[i], o.job.objectiveSlope(-1, c.target)) }; gradients, err := o.backward(ctx, sets, slopes)'
plant '6 tangent: g = 0 divides by 0'                                'TestNoiseWithout'           optimize/noise.go        'if square == 0 ||' 'if false ||'
plant '6 tangent: not refused for clamps'                            'TestCombinations'           optimize/job.go          'case tangent && projects(kind):' 'case false:'
plant '6 abl_relu removes the wrong side'                            'TestSpecifiedDescents/gemma2_noise' optimize/noise.go        'along >= 0' 'along < 0'
plant '6 abl_relu is ignored'                                        'TestSpecifiedDescents/gemma2_noise' optimize/noise.go        'z.job.DoNoiseAblRelu &&' 'false &&'
plant '6 anti-PGD adds the draw before'                              'TestSpecifiedDescents/gemma2_noise' optimize/noise.go        'n[i] -= x' 'n[i] += x'
plant '6 anti-PGD: the draw before of another completion'            'TestSpecifiedDescents/gemma2_minibatch' optimize/noise.go        'drawing{iter, draw, c.id, k}' 'drawing{iter, draw, 0*c.id + i, k}'
plant '6 anti-PGD is projected'                                      'TestSpecifiedDescents/gemma2_noise' optimize/noise.go        'case z.job.DoAntipgd && at.iter > 0:' 'case z.job.DoAntipgd && at.iter > 0 && z.tangents != nil:'
plant '7 runs though the target is not met'                          'TestStageOnlyAfter'         optimize/run.go          'stop != StopTarget && d.job.hasTargets()' 'false'
plant '7 norm: without the matrix'                                   'TestSpecifiedOutput'        optimize/constrained.go  'value += m' '_ = m'
plant '7 norm: gradient of the matrix'                               'TestSpecifiedOutput'        optimize/constrained.go  'axpy(g[i][j]/norm, ' 'axpy(g[i][j], '
plant '7 norm: L and R change gradients'                               'TestSpecifiedOutput'        optimize/constrained.go  'return norm, times(right, p.Left), times(left, p.Right)' 'return norm, times(left, p.Left), times(right, p.Right)'
plant '7 limits: without ε'                                          'TestSpecifiedOutput'        optimize/constrained.go  'entered.losses[i]+c.job.Eps' 'entered.losses[i]'
plant '7 limits: own targets are ignored'                            'TestSpecifiedOutput'        optimize/constrained.go  'own = *of.target' '_ = own'
plant '7 limits: the target alone'                                   'TestSpecifiedOutput'        optimize/constrained.go  'min(own, entered.losses[i]+c.job.Eps)' 'own+0*entered.losses[i]'
plant '7 limits: without a target the least loss is it'              'TestSpecifiedOutput'        optimize/constrained.go  'slices.Max(entered.losses)' 'slices.Min(entered.losses)'
plant '7 slacks: without the root'                                   'TestSpecifiedOutput'        optimize/constrained.go  'math.Sqrt(max(0, gap))' 'max(0, gap)'
plant '7 slacks: of broken constraints'                              'TestSpecifiedOutput'        optimize/constrained.go  'math.Sqrt(max(0, gap))' 'math.Sqrt(math.Abs(gap))'
plant '7 slacks: half the gradient'                                  'TestLagrangian'             optimize/constrained.go  '2 * c.Slacks[i] * pull[i]' 'c.Slacks[i] * pull[i]'
plant '7 infeasibility: the slack is not squared'                    'TestSpecifiedOutput'        optimize/constrained.go  'h := gap - c.Slacks[i]*c.Slacks[i]' 'h := gap - c.Slacks[i]'
plant '7 multipliers start at 1'                                     'TestSpecifiedOutput'        optimize/constrained.go  'c.Multipliers = make([]float64, len(c.Limits))' 'c.Multipliers = slices.Repeat([]float64{1}, len(c.Limits))'
plant '7 multipliers descend'                                        'TestSpecifiedOutput'        optimize/constrained.go  'axpy(1, moves(byMultiplier' 'axpy(-1, moves(byMultiplier'
plant '7 slacks ascend'                                              'TestSpecifiedOutput'        optimize/constrained.go  'axpy(-1, moves(bySlack' 'axpy(1, moves(bySlack'
plant '7 the quadratic term is missing'                              'TestSpecifiedOutput'        optimize/constrained.go  '(c.Multipliers[i] + h)' '(c.Multipliers[i] + 0*h)'
plant '7 the multipliers are forgotten'                              'TestSpecifiedOutput'        optimize/constrained.go  '(c.Multipliers[i] + h)' '(0*c.Multipliers[i] + h)'
plant '7 scale: without ε'                                           'TestSpecifiedOutput'        optimize/constrained.go  '(c.job.Eps + target)' '(target)'
plant '7 scale is 1'                                                 'TestSpecifiedOutput'        optimize/constrained.go  'c.Factor = size(entered.params) / (c.job.Eps + target)' 'c.Factor = 1'
plant '7 the penalty has the other sign'                             'TestSpecifiedOutput'        optimize/constrained.go  'pull[i] = -c.Factor' 'pull[i] = c.Factor'
plant '7 h is rounded to float32'                                    'TestSpecifiedOutput'        optimize/constrained.go  'h := gap - c.Slacks[i]*c.Slacks[i]' 'h := float64(float32(gap) - float32(c.Slacks[i])*float32(c.Slacks[i]))'
plant '7 adamax: β₁ is 0.8'                                          'TestSpecifiedOutput'        optimize/constrained.go  'beta1, beta2, eps = 0.9' 'beta1, beta2, eps = 0.8'
plant '7 adamax: β₂ is 0.9'                                          'TestSpecifiedOutput'        optimize/constrained.go  '0.999, 1e-8' '0.9, 1e-8'
plant '7 adamax: no bias correction'                                 'TestSpecifiedOutput'        optimize/constrained.go  'lr / (1 - math.Pow(beta1, float64(a.Taken)))' 'lr'
plant '7 adamax: the largest of the last two'                        'TestSpecifiedOutput'        optimize/constrained.go  'max(beta2*largest[n], math.Abs(g)+eps)' 'math.Abs(g)+eps'
plant '7 output_constr_lr is ignored'                                'TestSpecifiedOutput'        optimize/constrained.go  'lr[i] = *c.job.OutputConstrLR * c.scales.units[i]' '_ = i'
plant '7 output_constr_lr: auto is not lr'                           'TestStageRates'             optimize/constrained.go  'case c.job.LR == nil:' 'case true:'
plant '7 it goes on while the objective grows'                       'TestSpecifiedOutput'        optimize/constrained.go  'c.Iter > 0 && t.value > c.shrinking.Previous' 'false'
plant '7 max_output_constr_iters: a step too many'                   'TestSpecifiedOutput'        optimize/constrained.go  'c.Iter >= *c.job.MaxOutputConstrIters' 'c.Iter > *c.job.MaxOutputConstrIters'
plant '7 a broken constraint is returned'                            'TestSpecifiedOutput'        optimize/constrained.go  't.feasible() && t.value < c.BestValue' 't.value < c.BestValue'
plant '7 the last is returned'                                       'TestSpecifiedOutput'        optimize/constrained.go  't.feasible() && t.value < c.BestValue' 'true'
plant '7 the norm before is that after'                              'TestStageReport'            optimize/constrained.go  'vectorNorms(c.Entered.params())' 'vectorNorms(best.params())'
plant '7 the norm after is that before'                              'TestStageReport'            optimize/constrained.go  'NormAfter: vectorNorms(best.params())' 'NormAfter: vectorNorms(c.Entered.params())'
plant '7 the losses before are those after'                          'TestStageReport'            optimize/constrained.go  'LossesBefore: c.LossesBefore' 'LossesBefore: best.Losses'
plant '7 the losses after are those before'                          'TestStageReport'            optimize/constrained.go  'LossesAfter: best.Losses' 'LossesAfter: c.LossesBefore'
plant '7 max_norm does not hold'                                     'TestSpecifiedOutput'        optimize/constrained.go  'c.limit(c.Params)' '_ = c.limit'
plant '7 the stage is noisy'                                         'TestStageIsOf'              optimize/constrained.go  'o.noise, o.prompts = nil, 0' 'o.prompts = 0'
plant '7 custom objective: the norm may grow'                        'TestSpecifiedOutput|TestOwnObjective' optimize/constrained.go  'c.normLimited = limitsNorm(c.what)' 'c.normLimited = false'
plant '7 custom objective is ignored'                                'TestOwnObjective'           optimize/constrained.go  'case j.OutputObjective != nil:' 'case false:'
plant '7 MELBO: the other sign'                                      'TestSpecifiedOutput'        optimize/constrained.go  'value -= distance / tokens' 'value += distance / tokens'
plant '7 MELBO: the sum of distances'                                'TestSpecifiedOutput'        optimize/constrained.go  'scale(apart, -1/(distance*tokens))' 'scale(apart, -1/distance)'
plant '7 MELBO: against the steered stream of before'                'TestSpecifiedOutput'        optimize/constrained.go  'o.session.ForwardObserved(ctx, o.nothing())' 'o.session.ForwardObserved(ctx, o.operations([][]loader.Parameters{c.Params}))'
plant '7 MELBO: another layer'                                       'TestSpecifiedOutput'        optimize/constrained.go  'return melbo{*j.MelboLayer}' 'return melbo{*j.MelboLayer - 1}'
plant '7 MELBO: the last token is left out'                          'TestSpecifiedOutput'        optimize/constrained.go  'tokens += float64(len(of))' 'tokens += float64(len(of) - 1)'
plant '8 logprob: --coldness is ignored'                             'TestScripts/logprob'        cmd/llsteer/logprob.go   'len(promptTokens), coldness, precision' 'len(promptTokens), 1, precision'
plant '8 logprob: coldness by default 0.7'                           'TestScripts/reproduce|TestScripts/logprob' cmd/llsteer/logprob.go   '"coldness", 1,' '"coldness", 0.7,'
plant '8 logprob: --complement is ignored'                           'TestScripts/logprob'        cmd/llsteer/logprob.go   'log = probs[i].LogComplement' '_ = i'
plant '8 logprob: the last token is all'                             'TestScripts/logprob'        cmd/llsteer/logprob.go   'sum += log' 'sum = log'
plant '8 logprob: --probs gives logarithms'                          'TestScripts/logprob'        cmd/llsteer/logprob.go   'p := math.Exp(log)' 'p := log'
plant '8 search: the joint probability is the last one'              'TestSearch|TestSpecifiedSearches' ggmlsteer/search.go      'total = b.score.times(p)' '_ = total'
plant '8 search: always the joint probability'                       'TestSpecifiedSearches'      ggmlsteer/search.go      's.Total && len(b.Tokens) > 0' 'len(b.Tokens) > 0'
plant '8 search: a token too few'                                    'TestSpecifiedSearches'      ggmlsteer/search.go      'round == s.Further ||' 'round+1 >= s.Further ||'
plant '8 search: an ended beam goes on'                              'TestSpecifiedSearches'      ggmlsteer/search.go      'ended: s.ends(Token(token))' 'ended: false'
plant '8 search: an ended beam is lost'                              'TestSpecifiedSearches'      ggmlsteer/search.go      'add(b.score, func() *beam { return b })' '_ = b'
plant '8 search: a beam has its own best only'                       'TestSpecifiedSearches'      ggmlsteer/search.go      'if len(best) == s.Beams {' 'if len(best) == 1 {'
plant '8 search: coldness is 1'                                      'TestSpecifiedSearches'      ggmlsteer/search.go      'd := &distributions{coldness: s.Coldness}' 'd := &distributions{coldness: 1}'
plant '8 search: reverse is ignored'                                 'TestSpecifiedSearches'      ggmlsteer/search.go      'if s.Reverse {' 'if false {'
plant '8 search: probabilities are joint ones'                       'TestSpecifiedSearches'      ggmlsteer/search.go      'append(slices.Clone(b.Probs), p.value())' 'append(slices.Clone(b.Probs), total.value())'
plant '8 search: the contrast is added'                              'TestSpecifiedSearches'      ggmlsteer/search.go      'return difference(log, d.log(1, token))' 'return score{1, log + math.Log1p(math.Exp(d.log(1, token)-log))}'
plant '8 search: --total is ignored'                                 'TestScripts/search'         cmd/llsteer/search.go    '&o.Total, "total", false' 'new(bool), "total", false'
plant '8 search: by default 4 beams'                                 'TestScripts/search'         cmd/llsteer/search.go    '"k", 5,' '"k", 4,'
plant '8 search: by default 4 further tokens'                        'TestScripts/search'         cmd/llsteer/search.go    '"n", 5,' '"n", 4,'
plant '8 search: coldness by default 0.7'                            'TestScripts/search'         cmd/llsteer/search.go    '"coldness", 1,' '"coldness", 0.7,'
plant '8 generation: the least likely token'                         'TestReferenceContinuation'  ggmlsteer/generate.go    'if z > logits[best] {' 'if z < logits[best] {'
plant '8 generation: the temperature is 1'                           'TestSampling'               ggmlsteer/generate.go    'temperature: C.float(o.Temperature)' 'temperature: 1'
plant '8 generation: the seed is ignored'                            'TestSampling'               ggmlsteer/generate.go    'seed: C.uint32_t(o.Seed)' 'seed: 5'
plant '8 generation: top-k is ignored'                               'TestSampling'               ggmlsteer/generate.go    'top_k: C.int32_t(o.TopK)' 'top_k: 0'
plant '8 generation: top-p is ignored'                               'TestSampling'               ggmlsteer/generate.go    'top_p: C.float(o.TopP)' 'top_p: 1'
plant '8 generation: min-p is ignored'                               'TestSampling'               ggmlsteer/generate.go    'min_p: C.float(o.MinP)' 'min_p: 0'
plant '8 generation: the repeat penalty is ignored'                  'TestRepeatPenalty' ggmlsteer/generate.go    'repeat_penalty: C.float(o.RepeatPenalty)' 'repeat_penalty: 1'
plant '8 generation: the prompt is not penalized'                    'TestRepeatPenalty' ggmlsteer/generate.go    'for _, t := range prompt {' 'for _, t := range prompt[:0] {'
plant '8 activations: of the layer before'                           'TestReferenceStreamNorms'   ggmlsteer/model.go       'c[i] = C.int32_t(l)' 'c[i] = C.int32_t(max(l-1, 0))'
plant '8 activations: the wrong order of layers'                     'TestScripts/activations'    cmd/llsteer/activations.go 'slices.Concat(x...)' 'slices.Concat(x[len(x)-1:]...)'
plant '8 logprob: coldness is 1'                                     'TestSpecifiedLogprobs'      ggmlsteer/decoder.go     'probOf(row, tokens[i], coldness)' 'probOf(row, tokens[i], 1)'
plant '8 logprob: the probability after the token'                   'TestSpecifiedLogprobs'      ggmlsteer/decoder.go     'slots[0].logitsAt(i - 1)' 'slots[0].logitsAt(i - 1 + i%2)'
plant '10 lr: ten times the share'                                   'TestSpecifiedScales'        optimize/scale.go        'streamShare = 0.01' 'streamShare = 0.1 '
plant '10 lr: without √width'                                        'TestSpecifiedScales'        optimize/scale.go        'lr = streamShare * median / root' 'lr = streamShare * median'
plant '10 lr: BOS counts'                                            'TestSpecifiedScales|TestAutoLR' optimize/scale.go        'from := 1' 'from := 0'
plant '10 lr: a prompt counts for each completion'                   'TestAutoLR'                 optimize/scale.go        'from = c.prompt' 'from = 1'
plant '10 lr: of a shared vector the largest'                        'TestSpecifiedScales|TestAutoLR' optimize/scale.go        '[]float64{slices.Min(medians)}' '[]float64{slices.Max(medians)}'
plant '10 lr: of affine follows the stream'                         'TestSpecifiedScales'        optimize/scale.go        'j.LR == nil && kind != loader.Affine' 'j.LR == nil'
plant '10 a clamp starts at norm 1'                                  'TestSpecifiedScales'        optimize/scale.go        'start = startShare * median' 'start = 1'
plant '10 rows of affine start at 1 beside lr auto'                  'TestAffineStart'            optimize/parameters.go   '		return 0.1' '		return 1'
plant 'r a moment is not kept'                                       'TestResumedRuns'            optimize/adam.go         'First, Second     [][]float64' 'First [][]float64; Second [][]float64 `json:"-"`'
plant 'r patience begins anew'                                       'TestResumedCounts'          optimize/run.go          'Met, Still int' 'Met, Still int `json:"-"`'
plant 'r the best value is not kept'                                 'TestResumedRuns'            optimize/constrained.go  'BestValue                   float64' 'BestValue float64 `json:"-"`'
plant 'r the objective before is not kept'                           'TestResumedRuns'            optimize/constrained.go  'Previous                    float64' 'Previous float64 `json:"-"`'
plant 'r halvings are not kept'                                      'TestResumedLBFGS'           optimize/lbfgs.go        'Trials    int' 'Trials int `json:"-"`'
plant 'r --resume forgets the steps behind it'                       'TestScripts/resume'         cmd/llsteer/resume.go    'k.steps = k.found.Steps' '_ = k.found.Steps'
plant 'l lbfgs with satisfice'                                       'TestCombinations'           optimize/job.go          'j.Optimizer == optimizerLBFGS && j.Satisfice' 'false'
plant 'd the strength of another steering'                           'TestSlots|TestSpecifiedLogprobs' ggmlsteer/decoder.go     'strengths[k*n+i] = C.float' 'strengths[(len(d.loaded)-1-k)*n+i] = C.float'
plant 'd prompt-only is ignored'                                     'TestPromptOnly'             ggmlsteer/slot.go        '(a.Steering.PromptOnly ||' '(false ||'
plant 'd a phase begins one late'                                    'TestPhases'                 ggmlsteer/slot.go        'inPrompt := position < prompt' 'inPrompt := position <= prompt'
plant 'd steered from one later'                                     'TestPhases'                 ggmlsteer/slot.go        'position < a.From' 'position <= a.From'
plant 'd a prefix of another strength is kept'                       'TestKeptPrefixes'           ggmlsteer/slot.go        ' && f.strength == other.strength' ''
plant 'd a vector is known by its address'                           'TestVectorChanged'          ggmlsteer/slot.go        'unique.Make(string(content))' 'unique.Make(fmt.Sprintf("%p", s))'
plant 'd slots in the order of their steerings'                      'TestSlotsUnderTheirOwn' ggmlsteer/decoder.go     'slices.SortFunc(needed, (*lowered).compare)' ''
plant 'd the steering of a lost token is forgotten'                  'TestLostTokens'             ggmlsteer/slot.go        'if at < len(s.factors) {' 'if false {'
exit $missed
