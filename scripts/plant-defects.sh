#!/bin/sh
# Plants defects in a copy of the Go sources, one at a time, runs the tests of
# the package, and says which test caught each. Ends with 1 if one was not caught.
# Needs what `make` builds; takes a quarter of an hour.
#
#   plant-defects.sh [WORDS]    only those with WORDS in their name
set -eu
cd "$(dirname "$0")/.."
root=$(pwd)
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
git ls-files -z | xargs -0 tar cf - | tar xf - -C "$copy"
ln -s "$root/bin" "$copy/bin"
CGO_CFLAGS="-O2 -DSTEER_H_SUM=$(cksum csrc/steer.h | cut -d' ' -f1)"
export CGO_CFLAGS
missed=0
words=${1:-}

# plant WHAT FILE FROM TO: the first line that has FROM, a fixed text, gets TO in its place
plant() {
    what=$1 file=$2
    case $what in *"$words"*) ;; *) return 0 ;; esac
    FROM=$3 TO=$4 awk '!done && (at = index($0, ENVIRON["FROM"])) {
        $0 = substr($0, 1, at - 1) ENVIRON["TO"] substr($0, at + length(ENVIRON["FROM"])); done = 1
    } { print } END { exit !done }' "$file" > "$copy/$file" || { echo "plant-defects.sh: $file has no line with: $3" >&2; exit 1; }
    (cd "$copy" && go vet "./$(dirname "$file")") >/dev/null 2>&1 || { echo "plant-defects.sh: with the defect '$what' it does not compile" >&2; exit 1; }
    caught=$(cd "$copy" && go test -count=1 "./$(dirname "$file")" 2>&1 | sed -n 's/^--- FAIL: \([^ ]*\).*/\1/p' | sort -u | tr '\n' ' ')
    cp "$file" "$copy/$file"
    if [ -n "$caught" ]; then
        printf '%-46s caught by %s\n' "$what" "$caught"
    else
        printf '%-46s NOT CAUGHT\n' "$what"
        missed=1
    fi
}

plant 'sign of a src loss'                        optimize/loss.go        'return -complement, math.Exp(p.Log - complement)' 'return -complement, -math.Exp(p.Log - complement)'
plant 'a term of the projection is missing'       optimize/kinds.go       '2*along*float64(v)' '0*along*float64(v)'
plant 'the projection is detached'                optimize/kinds.go       'float64(g.Left[0][n]) - float64(g.Right[0][n])/square + 2*along' 'float64(g.Left[0][n]) + 0*along'
plant 'clamp: c·v is forgotten in the gradient'   optimize/kinds.go       'sum[n] += clamp * float64(g.Vectors[0][n])' '_ = clamp'
plant 'the mask is off by one'                    optimize/completion.go  'return i < c.prompt' 'return i <= c.prompt'
plant 'a negative example is not negative'        optimize/completion.go  'signed[k] = -factor' 'signed[k] = factor'
plant 'a negative example turns the matrix'       optimize/completion.go  'vector, row := signed, c.mask' 'vector, row := signed, signed'
plant 'moments are corrected for a step too many' optimize/adam.go        'math.Pow(a.beta2, float64(a.steps))' 'math.Pow(a.beta2, float64(a.steps+1))'
plant 'the norm limit forgets the rows'           optimize/run.go         'limit(row, d.job.MaxAffineNorm)' '_ = row'
plant 'satisfice without its factor'              optimize/loss.go        'return 2 * (loss - *target)' 'return loss - *target'
plant 'tangent noise keeps the tangent'           optimize/noise.go       'n[i] -= along / square * g[i]' 'n[i] += along / square * g[i]'
plant 'abl_relu removes the wrong side'           optimize/noise.go       'along >= 0' 'along < 0'
plant 'anti-PGD adds the draw before'             optimize/noise.go       'n[i] -= x' 'n[i] += x'
plant 'draws are not averaged'                    optimize/objective.go   'losses[i] += now[i] / float64(draws)' 'losses[i] += now[i]'
plant 'the window starts one late'                optimize/objective.go   '(iter*o.job.MinibatchSize + k) % n' '(iter*o.job.MinibatchSize + k + 1) % n'
plant 'multipliers descend'                       optimize/constrained.go 'axpy(1, moves(byMultiplier' 'axpy(-1, moves(byMultiplier'
plant 'a broken constraint is returned'           optimize/constrained.go 't.feasible() && t.value < best.value' 't.value < best.value'
plant 'MELBO forgets the norm'                    optimize/constrained.go 'c.normLimited = true' 'c.normLimited = false'
plant 'entropy with the other sign'               optimize/regularizer.go 'gradient[i] = -math.Exp' 'gradient[i] = math.Exp'
plant 'the shared vector has one layer'           optimize/objective.go   'axpy(1, row, gradients[k][o.owner(i)][r])' 'copy(gradients[k][o.owner(i)][r], row)'
plant 'a moment is not kept for --resume'         optimize/adam.go        'First, Second     [][]float64' 'First [][]float64; Second [][]float64 `json:"-"`'
plant 'halvings are not kept for --resume'        optimize/lbfgs.go       'Trials    int' 'Trials int `json:"-"`'
plant 'patience begins anew on --resume'          optimize/run.go         'Met, Still int' 'Met, Still int `json:"-"`'
plant 'the best value is not kept for --resume'   optimize/constrained.go 'BestValue                   float64' 'BestValue float64 `json:"-"`'
plant 'the objective before is not kept'          optimize/constrained.go 'Previous                    float64' 'Previous float64 `json:"-"`'
plant 'the state is that of the step after'       optimize/run.go         'return d.result(d.Best, d.Iter-1,' 'return d.result(d.Best, d.Iter,'
plant '--resume forgets the steps behind it'      cmd/llsteer/resume.go   'k.steps = k.found.Steps' '_ = k.found.Steps'
plant 'reproduce forgets to clamp'                cmd/llsteer/reproduce.go '+"="); is {' '+"="); is && o.Name != "vector_clamp" {'
plant 'a start that is no unit long'              optimize/scale.go       'start = unit' 'start = 1'
plant 'the bound is in no units'                  optimize/run.go         '*d.job.MaxNorm*d.scales.units[i]' '*d.job.MaxNorm+0*d.scales.units[i]'
plant 'slopes of regularizers in no units'        optimize/objective.go   'scale(slopes[i], 1/o.units[i])' 'scale(slopes[i], 1)'
plant 'a clamp starts at norm 1'                  optimize/scale.go       'start = startShare * median' 'start = 1'
plant 'lbfgs with satisfice'                      optimize/job.go         'j.Optimizer == optimizerLBFGS && j.Satisfice' 'false'
plant 'the strength of another steering'          ggmlsteer/decoder.go    'strengths[k*n+i] = C.float' 'strengths[(len(d.loaded)-1-k)*n+i] = C.float'
plant 'prompt-only is ignored'                    ggmlsteer/slot.go       '(a.Steering.PromptOnly ||' '(false ||'
plant 'a phase begins one late'                   ggmlsteer/slot.go       'inPrompt := position < prompt' 'inPrompt := position <= prompt'
plant 'steered from one later'                    ggmlsteer/slot.go       'position < a.From' 'position <= a.From'
plant 'a prefix of another strength is kept'      ggmlsteer/slot.go       ' && f.strength == other.strength' ''
plant 'a vector is known by its address'          ggmlsteer/slot.go       'unique.Make(string(content))' 'unique.Make(fmt.Sprintf("%p", s))'
plant 'slots in the order of their steerings'     ggmlsteer/decoder.go    'slices.SortFunc(needed, (*lowered).compare)' ''
plant 'the steering of a lost token is forgotten' ggmlsteer/slot.go       'if at < len(s.factors) {' 'if false {'
plant 'ablate adds'                               ggmlsteer/operation.go  'right[i] = float32(-float64(v) / square)' 'right[i] = float32(float64(v) / square)'
exit $missed
