package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/llsteer/llsteer/ggmlsteer"
)

// maxText bounds what @FILE reads: far more than any context holds.
const maxText = 16 << 20

// text reads a text argument: @FILE is the file's content as it is, @- standard
// input, @@… a text that begins with @.
func (p *program) text(flag, arg string) (string, error) {
	rest, marked := strings.CutPrefix(arg, "@")
	text, from := arg, flag
	switch {
	case strings.HasPrefix(rest, "@"):
		text = rest
	case marked && rest == "-":
		if p.stdinRead != "" {
			return "", badInput("", "%s: standard input was read by %s already", flag, p.stdinRead)
		}
		p.stdinRead = flag
		data, err := readText(os.Stdin)
		if err != nil {
			return "", badInput("", "%s: standard input: %v", flag, err)
		}
		text, from = data, flag+": standard input"
	case marked:
		f, err := os.Open(rest)
		if err != nil {
			return "", badInput("a text that begins with @ is written @@", "%s: cannot read the file %s: %s", flag, rest, reason(err))
		}
		defer f.Close()
		if text, err = readText(f); err != nil {
			return "", badInput("", "%s: cannot read the file %s: %s", flag, rest, reason(err))
		}
		from = flag + ": " + rest
	}
	if !utf8.ValidString(text) {
		return "", badInput("texts are UTF-8", "%s: byte %d is not UTF-8", from, invalidByte(text))
	}
	return text, nil
}

func readText(r io.Reader) (string, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxText+1))
	if err == nil && len(data) > maxText {
		err = fmt.Errorf("longer than %d MiB", maxText>>20)
	}
	return string(data), err
}

func invalidByte(text string) int {
	for i, r := range text {
		if r == utf8.RuneError && !strings.HasPrefix(text[i:], string(utf8.RuneError)) {
			return i
		}
	}
	return len(text)
}

// texts reads several text arguments.
func (p *program) texts(flag string, args []string) ([]string, error) {
	all := make([]string, len(args))
	for i, arg := range args {
		text, err := p.text(flag, arg)
		if err != nil {
			return nil, err
		}
		all[i] = text
	}
	return all, nil
}

// promptTokens tokenizes a prompt: plain, or as a user's turn.
func (f *modelFlags) promptTokens(m *ggmlsteer.Model, prompt string) ([]ggmlsteer.Token, error) {
	var tokens []ggmlsteer.Token
	var err error
	if f.chat {
		tokens, err = m.Chat(f.system, prompt)
	} else {
		tokens, err = m.Tokenize(prompt, f.parseSpecial)
	}
	if err == nil && len(tokens) == 0 {
		err = badInput("this model puts no token of its own before a text", "the prompt has no tokens")
	}
	return tokens, err
}

// completionTokens tokenizes a prompt together with a completion: those from
// the prompt's number on are the completion's.
func (f *modelFlags) completionTokens(m *ggmlsteer.Model, prompt, completion string) ([]ggmlsteer.Token, error) {
	if f.chat {
		return m.ChatCompletion(f.system, prompt, completion)
	}
	return m.Tokenize(prompt+completion, f.parseSpecial)
}

// onlyText reads the text of a flag that has to be given, and once.
func (p *program) onlyText(flag string, values []string) (string, error) {
	switch len(values) {
	case 0:
		return "", badInput("", "%s is missing", flag)
	case 1:
		return p.text(flag, values[0])
	}
	return "", badInput("", "%s is given %d times, and this command takes one", flag, len(values))
}
