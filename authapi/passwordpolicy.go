package authapi

import (
	"strings"
	"sync"
	"unicode/utf8"
)

// Bounds of a password, in code points. There are no rules about kinds of characters (NIST SP 800-63B, section 3.1.1.2).
const (
	passwordMin = 10
	passwordMax = 128
	// ownPartMin is how much of a password must be left, in code points, when the account's own name and address are
	// taken out of it.
	ownPartMin = 8
)

// checkPassword says what is wrong with a new password, "" for nothing. username and email are the account's, in lower
// case; either may be "".
func checkPassword(password, username, email string) string {
	n := utf8.RuneCountInString(password)
	switch {
	case !utf8.ValidString(password):
		return "must be valid UTF-8"
	case n < passwordMin:
		return "must have at least 10 characters"
	case n > passwordMax:
		return "must have at most 128 characters"
	case commonPassword(password):
		return "is one of the most common passwords"
	}
	rest := strings.ToLower(password)
	local, _, _ := strings.Cut(email, "@")
	for _, own := range []string{email, username, local} {
		if len(own) >= 3 {
			rest = strings.ReplaceAll(rest, own, "")
		}
	}
	if utf8.RuneCountInString(rest) < ownPartMin {
		return "must be more than the user name or e-mail address with a few characters around it"
	}
	return ""
}

// Passwords that everybody tries first, as rules: a base word, by itself or twice, before up to two endings. The words are what
// people are known to choose (words for entry and trust, names, teams, keyboard rows); together they make more than
// 10,000 passwords of ten characters and more.
const commonWords = `password passwort passw0rd p@ssword p@ssw0rd pa55word passwd password1 mypassword thepassword newpassword yourpassword
secret secret1 mysecret topsecret letmein letmein1 welcome welcome1 welcometo admin admin1 administrator adminadmin root rootroot toor
superuser user username guest login loginlogin test tester testing testtest test1234 demo demodemo default changeme change_me changeit
changethis access master mastermind server database mysql oracle postgres qwerty qwertyuiop qwertzuiop qwertz azerty azertyuiop asdfgh
asdfghjkl asdf asdfasdf zxcvbn zxcvbnm qazwsx qazwsxedc 1qaz2wsx 1qaz2wsx3edc zaq12wsx qweasd qweasdzxc qwe123 q1w2e3r4 q1w2e3r4t5
1q2w3e4r 1q2w3e4r5t 1q2w3e4r5t6y qwer1234 qwerqwer abc123 abcd1234 abcdef abcdefg abcdefgh abcdefghij a1b2c3d4 aa123456 iloveyou
iloveyou1 ilovegod iloveme iloveu loveme lovely lover love loveyou forever friends friend family freedom sunshine princess princesa
prince angel angels angelo baby babygirl babyboy beautiful beauty butterfly flower flowers rainbow chocolate cookie cookies banana
orange cherry apple apples peaches pepper ginger sugar honey monkey monkeys dragon dragons tiger tigers lion lions eagle eagles
falcon falcons wolf wolves bear bears panther panthers shark dolphin dolphins mustang ferrari porsche mercedes bmw corvette camaro
harley yamaha honda toyota nissan football football1 baseball baseball1 basketball soccer hockey tennis golf golfer swimming running
chelsea arsenal liverpool liverpool1 manchester barcelona juventus realmadrid lakers yankees steelers cowboys redsox packers rangers
superman batman spiderman ironman starwars starwars1 pokemon pikachu naruto minecraft matrix trustno1 whatever nothing something
anything computer internet windows microsoft google facebook youtube instagram twitter linkedin samsung iphone android amazon apple123
michael michael1 jennifer jessica ashley daniel david robert thomas george charlie charles andrew matthew joshua anthony christopher
christian william richard joseph jordan jordan23 nicole michelle amanda melissa stephanie elizabeth samantha victoria alexander
alexandra benjamin jonathan maggie buster killer hunter hunter2 ranger soldier summer winter spring autumn january february march
april june july august september october november december monday tuesday wednesday thursday friday saturday sunday london paris
berlin newyork chicago dallas boston texas california florida america american australia canada england scotland ireland germany
deutschland france espana italia brasil russia india china jesus jesuschrist jesus1 blessed heaven faith hello hello1 hellohello
helloworld hello123 goodbye peace happy smile smiley lucky lucky7 mother father mommy daddy sister brother money dollar million
diamond silver golden purple yellow green blue red black white shadow phoenix thunder lightning storm snoopy garfield mickey scooby
tinkerbell hellokitty maverick midnight sweetheart sweety darling precious company business office school student teacher college
university correcthorsebatterystaple gandalf merlin wizard warrior knight spartan samurai ninja pirate hacker h4x0r`

const commonEndings = `1 2 3 7 8 9 0 00 01 02 03 07 10 11 12 13 21 22 23 33 42 44 55 66 69 77 88 99 100 101 111 123 1234 12345 123456 1234567
12345678 123456789 1234567890 123123 321 4321 54321 654321 666 777 888 999 000 007 1111 2222 2000 2001 2010 2015 2018 2019 2020 2021 2022
2023 2024 2025 2026 2027 1980 1985 1990 1995 1999 ! !! !!! ? . 1! 12! 123! 1234! !1 !123 @1 @12 @123 @1234 #1 #123 _1 _123 -123 .123 $ $1
abc xyz qwe qwerty me you pass admin`

// commonExact are common passwords of ten characters and more that no rule makes.
const commonExact = `0123456789 1234567890 0987654321 9876543210 1234567891 12345678910 123456789a 123456789q a123456789 q123456789 1234509876
1357924680 1029384756 1123581321 3141592653 31415926535 147258369 1472583690 7894561230 0147258369 123qweasdzxc 123qwe123qwe 1qazxsw23edc
qwertyuiop[] 1qaz@wsx3edc !qaz2wsx3edc qazwsxedcrfv qwertyuiopasdfghjkl qwertyuiopasdfghjklzxcvbnm asdfghjkl; asdfghjklzxcvbnm zxcvbnm123
poiuytrewq lkjhgfdsa1 mnbvcxz123 abcdefghijklmnopqrstuvwxyz zyxwvutsrq 1a2b3c4d5e a1b2c3d4e5 a1s2d3f4g5 z1x2c3v4b5
passwordpassword password12345678910 thisismypassword thisispassword letmeinplease openthedoor opensesame
notapassword ihatepasswords nopassword mypassword123 iloveyousomuch iloveyouforever ilovemyself ilovemyfamily godisgood jesusislord
inthebeginning maytheforcebewithyou winteriscoming`

type commonSets struct {
	words, endings map[string]bool
	exact          map[string]bool
}

var commonPasswords = sync.OnceValue(func() commonSets {
	set := func(list string) map[string]bool {
		m := map[string]bool{}
		for _, w := range strings.Fields(list) {
			m[w] = true
		}
		return m
	}
	c := commonSets{words: set(commonWords), endings: set(commonEndings), exact: set(commonExact)}
	return c
})

// commonPassword says whether a password, in any case, is on the list.
func commonPassword(password string) bool {
	p := strings.ToLower(password)
	if strings.Count(p, p[:1]) == len(p) {
		return true // one character again and again
	}
	sets := commonPasswords()
	if sets.exact[p] {
		return true
	}
	return sets.made(p, 2)
}

// made says whether p is a word, or one twice, before up to n endings.
func (c commonSets) made(p string, n int) bool {
	if half := len(p) / 2; c.words[p] || c.words[p[:half]] && p[:half] == p[half:] {
		return true
	}
	for i := len(p) - 1; n > 0 && i > 0; i-- {
		if c.endings[p[i:]] && c.made(p[:i], n-1) {
			return true
		}
	}
	return false
}
