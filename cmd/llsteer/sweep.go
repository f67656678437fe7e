package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/llsteer/llsteer/ggmlsteer"
	"github.com/llsteer/llsteer/loader"
	"github.com/llsteer/llsteer/optimize"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// When a strength is recommended: docs/cli.md.
const (
	enoughGain         = 0.8  // of the largest
	readablePerplexity = 2.5  // times that of the unsteered texts; good ones stay below 2.1, damaged ones are above 4
	readableLooping    = 0.25 // more of the texts than unsteered
)

// sweepFlags say what is measured.
type sweepFlags struct {
	model                       modelFlags
	files, strengths            []string
	prompts, completions        []string
	promptsFile, reversePrompts string
	neutral                     []string
	tokens                      int
	precision                   precision
}

func (p *program) sweep() *cobra.Command {
	var f sweepFlags
	var plot string
	cmd := &cobra.Command{
		Use:   "sweep -m MODEL -s FILE... [--strengths S]... [-p PROMPT]...",
		Short: "what each strength of a steering does, and which to use",
		Long: `Tries strengths of both signs of one or more steerings, and for each tells how likely
the completions become that it was made for, how likely the unsteered model finds
the texts that it writes (perplexity), how many of these go round in loops, and how
far it moves the model on a text that has nothing to do with it (KL). A random
vector of the same norm is measured, too. A strength is recommended: the smallest that
does most of what can be done while the texts stay readable.`,
		Example: `  llsteer optimize -m demo demo -o spanish.gguf
  llsteer sweep -m demo -s spanish.gguf --strengths 0.25:1.5:0.25 --plot sweep.svg`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkOutputs(map[string]string{"--plot": plot}, f.inputs()...); err != nil {
				return err
			}
			result, err := p.runSweep(cmd.Context(), &f)
			if err != nil {
				return err
			}
			if plot != "" {
				if err := writePlot(plot, result.panels()); err != nil {
					return err
				}
			}
			if p.json {
				return p.printJSON(result)
			}
			return p.print(result.text())
		},
	}
	addFlags(cmd, "Steering", func(flags *pflag.FlagSet) {
		flags.StringArrayVarP(&f.files, "steer", "s", nil, "steering `FILE` or control vector, without a strength; several are compared (required)")
		completeFiles(flags, "steer", "gguf")
		flags.StringArrayVar(&f.strengths, "strengths", nil, "`NUMBER` or FROM:TO:STEP, strengths to try; repeatable (default ±0.25, ±0.5, ±0.75, ±1, ±1.5, ±2)")
	})
	addFlags(cmd, "Texts (@FILE reads a file, @- standard input, @@ is an @)", func(flags *pflag.FlagSet) {
		flags.StringArrayVarP(&f.prompts, "prompt", "p", nil, "`TEXT` to continue, none that the steering was made with; repeatable (default with -m demo: its own)")
		flags.StringVar(&f.promptsFile, "prompts", "", "`FILE` of such texts, each on a line")
		flags.StringVar(&f.reversePrompts, "reverse-prompts", "", "`FILE` of those for negative strengths (default the same)")
		flags.StringArrayVarP(&f.completions, "completion", "c", nil, "`TEXT` that should become likely after each prompt; repeatable (default the completions of the steering's own job)")
		flags.StringArrayVar(&f.neutral, "neutral", nil, "`TEXT` that the steering should leave alone (default a few sentences of English)")
	})
	addFlags(cmd, "Sweep", func(flags *pflag.FlagSet) {
		countVar(flags, &f.tokens, "n-predict", "n", 40, 1, math.MaxInt32, "most tokens of a continuation")
		flags.StringVar(&plot, "plot", "", "draw it into `FILE`, as SVG")
		completeFiles(flags, "plot", "svg")
		addPrecision(flags, &f.precision, precisionF32)
	})
	f.model.add(cmd)
	return cmd
}

// A sweepResult is what sweep --json prints.
type sweepResult struct {
	Files []sweptFile `json:"files"`
	// the best of the files' own; left out where there is none
	Recommended *recommendation `json:"recommended,omitempty"`
	Reverse     *recommendation `json:"recommended_reverse,omitempty"`
}

type sweptFile struct {
	File             string             `json:"file"`
	Kind             loader.Kind        `json:"kind"`
	Layers           []int              `json:"layers"`
	Norms            map[string]float64 `json:"norms"` // by layer, or "shared"
	Unsteered        *measurement       `json:"unsteered"`
	UnsteeredReverse *measurement       `json:"unsteered_reverse"` // on the prompts for negative strengths
	Strengths        []sweptStrength    `json:"strengths"`         // ascending
	Recommended      *recommendation    `json:"recommended,omitempty"`
	Reverse          *recommendation    `json:"recommended_reverse,omitempty"`
}

type sweptStrength struct {
	Strength float64 `json:"strength"`
	*measurement
	Control *measurement `json:"control"` // a random vector of the same norm
}

// A recommendation is a file's best strength of one sign.
type recommendation struct {
	File     string  `json:"file"`
	Strength float64 `json:"strength"`
	Gain     float64 `json:"gain"` // nats; see measurement.gain
	Why      string  `json:"why"`
}

func (p *program) runSweep(ctx context.Context, f *sweepFlags) (*sweepResult, error) {
	in, m, err := p.sweepInput(ctx, f)
	if err != nil {
		return nil, err
	}
	defer m.Close()
	s, err := newSweeper(m, slices.Concat(in.prompts[0], in.prompts[1]), in.neutral, slices.Concat(in.completions...), f.tokens, f.precision.or(ggmlsteer.F32))
	if err != nil {
		return nil, err
	}
	defer s.close()
	total := len(in.steerings) * (1 + 2*len(in.strengths))
	if in.hasReverse {
		total += len(in.steerings)
	}
	progress := p.newProgress(&total)
	defer progress.done()
	done := 0
	result := &sweepResult{}
	for i, steering := range in.steerings {
		swept, err := s.sweepFile(ctx, in, i, f.files[i], f.model.seed, func(what string) {
			done++
			progress.show(done, what, fmt.Sprintf("%d of %d  %s", done, total, what))
		})
		if err != nil {
			return nil, fmt.Errorf("%s: %w", f.files[i], err)
		}
		swept.Kind, swept.Layers, swept.Norms = steering.Kind, steering.Layers, map[string]float64{}
		for k, params := range steering.Params {
			swept.Norms[paramsKey(steering, k)] = norm(params.Vector)
		}
		result.add(swept)
	}
	return result, nil
}

// sweepFile measures all strengths of one steering.
func (s *sweeper) sweepFile(ctx context.Context, in *sweepInput, i int, file string, seed uint64, done func(string)) (*sweptFile, error) {
	swept := &sweptFile{File: file}
	steering, control := in.steerings[i], randomLike(in.steerings[i], seed)
	measure := func(steering *loader.Steering, strength float64, reverse bool) (*measurement, error) {
		prompts := in.prompts[0]
		if reverse {
			prompts = in.prompts[1]
		}
		m, err := s.measure(ctx, steering, strength, prompts, in.completions[i])
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("strength %v: %w", strength, err)
		}
		done(fmt.Sprintf("%s, strength %v", file, strength))
		return m, err
	}
	var err error
	if swept.Unsteered, err = measure(nil, 0, false); err != nil {
		return nil, err
	}
	swept.UnsteeredReverse = swept.Unsteered
	if in.hasReverse {
		if swept.UnsteeredReverse, err = measure(nil, 0, true); err != nil {
			return nil, err
		}
	}
	for _, strength := range in.strengths {
		at := sweptStrength{Strength: strength}
		if at.measurement, err = measure(steering, strength, strength < 0); err != nil {
			return nil, err
		}
		if at.Control, err = measure(control, strength, strength < 0); err != nil {
			return nil, err
		}
		swept.Strengths = append(swept.Strengths, at)
	}
	swept.Recommended = swept.recommend(false)
	swept.Reverse = swept.recommend(true)
	return swept, nil
}

// add takes a file in, and its recommendations where they are the best.
func (r *sweepResult) add(f *sweptFile) {
	r.Files = append(r.Files, *f)
	for _, pair := range []struct {
		best **recommendation
		own  *recommendation
	}{{&r.Recommended, f.Recommended}, {&r.Reverse, f.Reverse}} {
		if pair.own != nil && (*pair.best == nil || pair.own.Gain > (*pair.best).Gain) {
			*pair.best = pair.own
		}
	}
}

// recommend chooses among the positive strengths, or the negative ones: of those whose
// texts stay readable, the smallest that has enough of the largest gain.
func (f *sweptFile) recommend(reverse bool) *recommendation {
	base := f.Unsteered
	if reverse {
		base = f.UnsteeredReverse
	}
	var readable []sweptStrength // from the smallest on
	best := 0.0
	for _, at := range f.Strengths {
		if at.Strength < 0 != reverse || !at.readable(base) {
			continue
		}
		readable = append(readable, at)
		best = max(best, at.gain(base, reverse))
	}
	if reverse {
		slices.Reverse(readable)
	}
	for _, at := range readable {
		gain := at.gain(base, reverse)
		if gain <= 0 || gain < enoughGain*best {
			continue
		}
		return &recommendation{f.File, at.Strength, gain, fmt.Sprintf(
			"the smallest strength that has %.0f %% of the largest gain, %.2f nats, where texts stay readable: perplexity at most %.2f (unsteered %.2f), loops in at most %.0f %% (unsteered %.0f %%)",
			100*enoughGain, best, readablePerplexity**base.Perplexity, *base.Perplexity, 100*min(1, base.Looping+readableLooping), 100*base.Looping)}
	}
	return nil
}

func (m *measurement) readable(unsteered *measurement) bool {
	return m.Perplexity != nil && unsteered.Perplexity != nil && *m.Perplexity <= readablePerplexity**unsteered.Perplexity && m.Looping <= unsteered.Looping+readableLooping
}

// gain is how far log p(dst) has moved the way of the strength's sign or, where there are
// no such completions, how far log p(src) has moved the other way.
func (m *measurement) gain(unsteered *measurement, reverse bool) float64 {
	var gain float64
	if m.Dst != nil {
		gain = *m.Dst - *unsteered.Dst
	} else {
		gain = *unsteered.Src - *m.Src
	}
	if reverse {
		return -gain
	}
	return gain
}

// text is the table for people.
func (r *sweepResult) text() string {
	var b strings.Builder
	for i, f := range r.Files {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "%s: %s at layer %s; in brackets, a random vector of the same norm\n", f.File, f.Kind, optimize.Layers{List: f.Layers})
		b.WriteString("strength  log p(dst)        log p(src)        perplexity       looping      KL\n")
		positive := slices.IndexFunc(f.Strengths, func(at sweptStrength) bool { return at.Strength > 0 })
		if positive < 0 {
			positive = len(f.Strengths)
		}
		writeRows(&b, f.Strengths[:positive])
		if f.UnsteeredReverse != f.Unsteered {
			writeRow(&b, "0, back", f.UnsteeredReverse, nil)
		}
		writeRow(&b, "0", f.Unsteered, nil)
		writeRows(&b, f.Strengths[positive:])
		for _, c := range []struct {
			name  string
			r     *recommendation
			tried bool
		}{{"forward", f.Recommended, positive < len(f.Strengths)}, {"back", f.Reverse, positive > 0}} {
			switch {
			case c.r != nil:
				fmt.Fprintf(&b, "%s: %v, %s\n", c.name, c.r.Strength, c.r.Why)
			case c.tried:
				fmt.Fprintf(&b, "%s: no strength gains anything while texts stay readable\n", c.name)
			}
		}
	}
	if len(r.Files) > 1 && r.Recommended != nil {
		fmt.Fprintf(&b, "\nof all: %s at strength %v, with the largest gain, %.2f nats\n", r.Recommended.File, r.Recommended.Strength, r.Recommended.Gain)
	}
	return b.String()
}

func writeRows(b *strings.Builder, strengths []sweptStrength) {
	for _, at := range strengths {
		writeRow(b, fmt.Sprintf("%g", at.Strength), at.measurement, at.Control)
	}
}

func writeRow(b *strings.Builder, strength string, m, control *measurement) {
	cell := func(format string, of func(*measurement) *float64) string {
		if of(m) == nil {
			return "-"
		}
		text := fmt.Sprintf(format, *of(m))
		if control != nil && of(control) != nil {
			text += fmt.Sprintf(" ("+format+")", *of(control))
		}
		return text
	}
	line := fmt.Sprintf("%8s  %-16s  %-16s  %-15s  %-11s  %s", strength,
		cell("%.2f", func(m *measurement) *float64 { return m.Dst }), cell("%.2f", func(m *measurement) *float64 { return m.Src }),
		cell("%.2f", func(m *measurement) *float64 { return m.Perplexity }), cell("%.2f", func(m *measurement) *float64 { return &m.Looping }),
		cell("%.3f", func(m *measurement) *float64 { return &m.KL }))
	b.WriteString(strings.TrimRight(line, " ") + "\n")
}
