package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// verifyPrompts are what a server is asked, where the user names nothing.
var verifyPrompts = []string{
	"My favorite meal is",
	"When you open the program, the",
	"The old man looked at the sea and",
	"On Saturday morning we went to",
	"If you want to learn to play the guitar,",
	"The weather today is",
	"She told her brother that",
	"In this chapter you will",
}

const (
	// What verify finds out.
	verdictSteers    = "steers"         // at the strength that was expected
	verdictOther     = "other strength" // steers, at another strength
	verdictUnsteered = "unsteered"
	verdictUnlike    = "something else" // neither the model alone nor with this vector
	verdictInaudible = "cannot tell"    // the vector changes too little

	// A divergence above the limit is no arithmetic: five times what the model's ordinary
	// arithmetic makes against the exact one, and at least minDivergence (nats). Measured with
	// llama-server on three models: 0.0002 to 0.007 where it was the same, which was 0.1 to
	// 1.9 times what the arithmetic makes.
	minDivergence = 0.01
	noiseMargin   = 5
	leastNoise    = 0.05 // of what the arithmetic makes, is always there
	// A strength within the tolerance is the expected one, in parts of it, or within the error;
	// with an error of maxError nobody can tell one from none.
	strengthTolerance = 0.1
	maxError          = 0.4
	// So near to the model, in parts of what the vector does, no other strength need be tried.
	nearEnough = 0.02
)

func (p *program) verify() *cobra.Command {
	var model modelFlags
	var address, key, modelName string
	var strength, timeout float64
	var prompts []string
	cmd := &cobra.Command{
		Use:   "verify CVEC -m MODEL --server URL",
		Short: "does a running server really steer?",
		Long: `Asks a running server for the probabilities of the next token after a few prompts, and
compares them with those of the model under the control vector. llama-server with a
damaged or unfit control vector starts, says that it is well, and serves unsteered.

The server is llama-server, or any other with OpenAI's /v1/completions that gives
logprobs. MODEL is the file that it serves. Says at which strength the server steers;
the exit code is 0 if that is the expected one, and 1 if not.`,
		Example: `  llama-server -m MODEL.gguf --control-vector-scaled cvec.gguf:0.8 &
  llsteer verify cvec.gguf -m MODEL.gguf --server http://127.0.0.1:8080 --strength 0.8`,
		Args: cobra.ExactArgs(1),
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"gguf"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if address == "" {
				return badInput("such as --server http://127.0.0.1:8080", "--server is missing")
			}
			s, err := newServer(address)
			if err != nil {
				return err
			}
			if s.key, err = p.text("--api-key", key); err != nil {
				return err
			}
			s.model, s.timeout = modelName, time.Duration(timeout*float64(time.Second))
			steering, err := loader.Read(args[0])
			if err != nil {
				return err
			}
			if err := steering.CheckControlVector(); err != nil {
				return withPlace(err, args[0])
			}
			if prompts, err = p.texts("--prompt", prompts); err != nil {
				return err
			}
			if len(prompts) == 0 {
				prompts = verifyPrompts
			}
			m, err := p.open(cmd.Context(), &model)
			if err != nil {
				return err
			}
			defer m.Close()
			if err := steering.CheckFits(m.Info().Arch, m.Info().Embd, m.Info().Layers); err != nil {
				return withPlace(err, args[0])
			}
			v := verification{model: m, steering: steering, expected: strength}
			if err := v.ask(cmd.Context(), s, &model, prompts); err != nil {
				return err
			}
			if err := v.fit(cmd.Context()); err != nil {
				return err
			}
			if p.json {
				err = p.printJSON(v.view)
			} else {
				err = p.print(v.text(s.base))
			}
			if err == nil && v.view.Verdict != verdictSteers && !(strength == 0 && v.view.Verdict == verdictUnsteered) {
				err = exitStatus(exitFailed)
			}
			return err
		},
	}
	addFlags(cmd, "Server", func(flags *pflag.FlagSet) {
		flags.StringVar(&address, "server", "", "address, `URL` such as http://127.0.0.1:8080 (required)")
		numberVar(flags, &strength, "strength", 1, -math.MaxFloat32, math.MaxFloat32, "strength at which the server should steer; 0: not at all")
		flags.StringVar(&key, "api-key", "", "the server's API `KEY`; @FILE reads it")
		flags.StringVar(&modelName, "model-name", "", "`NAME` of the model, where the server has several")
		numberVar(flags, &timeout, "timeout", 60, 0.001, 86400, "seconds to wait for an answer")
		flags.StringArrayVarP(&prompts, "prompt", "p", nil, "`TEXT` to ask about; repeatable (default some built-in beginnings of sentences)")
	})
	model.add(cmd)
	return cmd
}

// A verification compares a server's probabilities with the model's own.
type verification struct {
	model    *ggmlsteer.Model
	steering *loader.Steering
	expected float64
	asked    []asked
	view     verifiedView
}

// asked is a prompt and what the server answered: the probabilities of some sets of
// tokens. A set is one token, unless several have the text that the server named.
type asked struct {
	tokens []ggmlsteer.Token
	sets   [][]ggmlsteer.Token
	probs  []float64
}

// verifiedView is the report. Divergences are means over the prompts, in nats.
type verifiedView struct {
	Verdict  string  `json:"verdict"`
	Strength float64 `json:"strength"` // that fits best
	Expected float64 `json:"expected"`
	Prompts  int     `json:"prompts"`
	// of the server from the model at the best strength, at strength 0 and the expected one
	KL          float64 `json:"kl"`
	KLUnsteered float64 `json:"kl_unsteered"`
	KLExpected  float64 `json:"kl_expected"`
	Effect      float64 `json:"effect"` // of the model at the expected strength (or at 1) from the model at 0
	Noise       float64 `json:"noise"`  // of the model's ordinary arithmetic from the exact one
	Limit       float64 `json:"limit"`  // what is taken for equal
	Error       float64 `json:"error"`  // of the strength; see judge
}

// ask asks the server about all prompts.
func (v *verification) ask(ctx context.Context, s *server, f *modelFlags, prompts []string) error {
	var byText map[string][]ggmlsteer.Token
	for _, text := range prompts {
		tokens, err := f.promptTokens(v.model, text)
		if err != nil {
			return err
		}
		if err := f.fits(v.model, fmt.Sprintf("the prompt %q", text), len(tokens)); err != nil {
			return err
		}
		if f.chat { // a server that wants a text gets the template's, too
			text = v.model.Text(tokens, true)
		}
		answer, err := s.next(ctx, tokens, text)
		if err != nil {
			return err
		}
		a := asked{tokens: tokens}
		seen := map[ggmlsteer.Token]bool{}
		for _, l := range answer {
			set := []ggmlsteer.Token{l.ID}
			if l.ID < 0 {
				if byText == nil {
					byText = v.tokensByText()
				}
				set = byText[l.Text]
			} else if int(l.ID) >= v.model.Info().Vocab {
				return badInput("it serves another model", "the server %s: it speaks of token %d, and the model has %d", s.base, l.ID, v.model.Info().Vocab)
			}
			if len(set) == 0 {
				continue // part of what is left over
			}
			for _, t := range set {
				if seen[t] {
					return badInput("", "the server %s: it gives token %d two probabilities", s.base, t)
				}
				seen[t] = true
			}
			a.sets, a.probs = append(a.sets, set), append(a.probs, math.Exp(l.Logprob))
		}
		if len(a.sets) == 0 {
			return badInput("it serves another model", "the server %s: it names no token that the model has", s.base)
		}
		v.asked = append(v.asked, a)
	}
	v.view.Prompts = len(v.asked)
	return nil
}

func (v *verification) tokensByText() map[string][]ggmlsteer.Token {
	all := map[string][]ggmlsteer.Token{}
	for t := range ggmlsteer.Token(v.model.Info().Vocab) {
		text := v.model.Text([]ggmlsteer.Token{t}, true)
		all[text] = append(all[text], t)
	}
	return all
}

// A reading has the model's own probabilities.
type reading struct {
	v       *verification
	decoder *ggmlsteer.Decoder
}

func (v *verification) reading(precision ggmlsteer.Precision) (*reading, error) {
	longest := 0
	for _, a := range v.asked {
		longest = max(longest, len(a.tokens))
	}
	d, err := v.model.NewDecoder(ggmlsteer.DecoderOptions{Context: longest, Sequences: 1, Precision: precision})
	if err != nil {
		return nil, err
	}
	return &reading{v, d}, nil
}

// at gives for each prompt the probabilities of the server's sets of tokens, at a strength.
func (r *reading) at(ctx context.Context, strength float64) ([][]float64, error) {
	if err := r.decoder.Steer(ggmlsteer.Active{Steering: r.v.steering, Strength: strength}); err != nil {
		return nil, err
	}
	r.decoder.Clear()
	var all [][]float64
	for _, a := range r.v.asked {
		row, err := r.next(ctx, a.tokens)
		if err != nil {
			return nil, err
		}
		logs := logSoftmax(row)
		probs := make([]float64, len(a.sets))
		for j, set := range a.sets {
			for _, t := range set {
				probs[j] += math.Exp(logs[t])
			}
		}
		all = append(all, probs)
	}
	return all, nil
}

// next gives the logits after a prompt. Servers round activations to 8 bits, as ordinary
// decoding does here in small batches.
func (r *reading) next(ctx context.Context, prompt []ggmlsteer.Token) ([]float32, error) {
	const batch = 16
	slot := r.decoder.Slot(0)
	for n := 0; n < len(prompt); {
		n = min(n+batch, len(prompt))
		if _, err := slot.Set(prompt[:n], n); err != nil {
			return nil, err
		}
		if err := r.decoder.Decode(ctx); err != nil {
			return nil, err
		}
	}
	return slot.Logits()
}

// distance is the mean over the prompts of the divergence Σ p log(p/q), over the sets of
// tokens and what is left over.
func distance(p, q [][]float64) float64 {
	// what a float32 softmax leaves of 1 − Σp is rounding below this
	const least = 1e-6
	sum := 0.0
	for i := range p {
		restP, restQ := 1.0, 1.0
		for j := range p[i] {
			restP, restQ = restP-p[i][j], restQ-q[i][j]
			if p[i][j] > 0 {
				sum += p[i][j] * math.Log(p[i][j]/max(q[i][j], math.SmallestNonzeroFloat64))
			}
		}
		restP, restQ = max(restP, least), max(restQ, least)
		sum += restP * math.Log(restP/restQ)
	}
	return max(sum/float64(len(p)), 0)
}

// fit finds the strength whose probabilities are nearest to the server's, and what
// that means.
func (v *verification) fit(ctx context.Context) error {
	r, err := v.reading(ggmlsteer.Ordinary)
	if err != nil {
		return err
	}
	defer r.decoder.Close()
	var served [][]float64
	for _, a := range v.asked {
		served = append(served, a.probs)
	}
	known := map[float64]float64{}
	divergence := func(s float64) (float64, error) {
		if d, ok := known[s]; ok {
			return d, nil
		}
		own, err := r.at(ctx, s)
		if err != nil {
			return 0, err
		}
		d := distance(served, own)
		if math.IsNaN(d) { // far too strong, or the model is damaged
			d = math.Inf(1)
		}
		known[s] = d
		return d, nil
	}
	unit := v.expected
	if unit == 0 {
		unit = 1
	}
	view := &v.view
	if err := v.measureNoise(ctx, r, unit); err != nil {
		return err
	}
	best := 0.0
	try := func(s float64) error {
		d, err := divergence(s)
		if err == nil && d < known[best] {
			best = s
		}
		return err
	}
	for _, s := range []float64{0, unit} {
		if err := try(s); err != nil {
			return err
		}
	}
	if math.IsInf(known[0], 1) || math.IsInf(known[unit], 1) {
		return fmt.Errorf("the model's own probabilities at the strengths 0 and %v are not finite", unit)
	}
	width := 0.04
	if known[best] > nearEnough*view.Effect { // neither of the two: look around
		width = 0.12
		for _, factor := range []float64{0.25, 0.5, 0.75, 1.25, 1.5, 2, 3, -0.5, -1, -2} {
			if err := try(factor * unit); err != nil {
				return err
			}
		}
	}
	for ; width > 0.005; width /= 2 { // down to a hundredth of the unit
		around := best
		for _, s := range []float64{around - width*unit, around + width*unit} {
			if err := try(s); err != nil {
				return err
			}
		}
	}
	view.Expected, view.Strength = v.expected, best
	view.KL, view.KLUnsteered, view.KLExpected = known[best], known[0], known[v.expected]
	view.judge()
	return nil
}

// measureNoise finds out what the vector does to the model's probabilities, and what
// the arithmetic of llama.cpp's ordinary decoding does.
func (v *verification) measureNoise(ctx context.Context, ordinary *reading, unit float64) error {
	exact, err := v.reading(ggmlsteer.F32)
	if err != nil {
		return err
	}
	defer exact.decoder.Close()
	var rounded, right [2][][]float64
	for i, s := range []float64{0, unit} {
		if rounded[i], err = ordinary.at(ctx, s); err != nil {
			return err
		}
		if right[i], err = exact.at(ctx, s); err != nil {
			return err
		}
		v.view.Noise = max(v.view.Noise, distance(right[i], rounded[i]))
	}
	v.view.Effect = distance(rounded[1], rounded[0])
	v.view.Limit = max(minDivergence, noiseMargin*v.view.Noise)
	return nil
}

// judge gives the verdict. The divergence grows with the square of the distance from the right
// strength, by Effect for a distance of the whole vector: one that is left at the best strength is
// as large as that of an error of the square root of its part of Effect.
func (v *verifiedView) judge() {
	unit := math.Abs(v.Expected)
	if unit == 0 {
		unit = 1
	}
	part := maxError // of the vector
	if v.Effect > 0 {
		part = min(math.Sqrt(max(v.KL, leastNoise*v.Noise)/v.Effect), maxError)
	}
	v.Error = part * unit
	tolerance := max(strengthTolerance*unit, v.Error)
	switch {
	case v.KL > v.Limit:
		v.Verdict = verdictUnlike
	case part >= maxError:
		v.Verdict = verdictInaudible
	case math.Abs(v.Strength) <= tolerance:
		v.Verdict = verdictUnsteered
	case math.Abs(v.Strength-v.Expected) <= tolerance && v.Expected != 0:
		v.Verdict = verdictSteers
	default:
		v.Verdict = verdictOther
	}
}

func (v *verification) text(base string) string {
	view := v.view
	var b strings.Builder
	switch view.Verdict {
	case verdictSteers:
		fmt.Fprintf(&b, "%s steers with this vector at strength %.2f ± %.2f\n", base, view.Strength, view.Error)
	case verdictOther:
		fmt.Fprintf(&b, "%s steers with this vector, but at strength %.2f ± %.2f and not %v\n", base, view.Strength, view.Error, view.Expected)
	case verdictUnsteered:
		fmt.Fprintf(&b, "%s serves unsteered: it did not load the vector, or has it at strength 0\n", base)
	case verdictUnlike:
		fmt.Fprintf(&b, "%s does something else: neither the model by itself nor with this vector at any strength, but another model, another vector or more than this vector\n", base)
	case verdictInaudible:
		fmt.Fprintf(&b, "it cannot be told whether %s steers: the vector changes too little at strength %v; try a stronger one, or other prompts with -p\n", base, view.Expected)
	}
	fmt.Fprintf(&b, "divergence of its next-token probabilities from the model's own, in nats (%d prompts):\n", view.Prompts)
	type row struct{ strength, divergence float64 }
	rows := []row{{0, view.KLUnsteered}, {view.Expected, view.KLExpected}, {view.Strength, view.KL}}
	slices.SortStableFunc(rows, func(a, b row) int {
		switch {
		case a.strength < b.strength:
			return -1
		case a.strength > b.strength:
			return 1
		}
		return 0
	})
	rows = slices.Compact(rows)
	for _, r := range rows {
		fmt.Fprintf(&b, "  at strength %5.2f: %.5f\n", r.strength, r.divergence)
	}
	fmt.Fprintf(&b, "the vector makes %.5f, and arithmetic %.5f (up to %.5f is taken for it)\n", view.Effect, view.Noise, view.Limit)
	return b.String()
}

// logSoftmax are the natural logarithms of the softmax.
func logSoftmax(logits []float32) []float64 {
	top := math.Inf(-1)
	for _, z := range logits {
		top = math.Max(top, float64(z))
	}
	sum := 0.0
	for _, z := range logits {
		sum += math.Exp(float64(z) - top)
	}
	logs := make([]float64, len(logits))
	for i, z := range logits {
		logs[i] = float64(z) - top - math.Log(sum)
	}
	return logs
}
