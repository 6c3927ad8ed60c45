"""Names for subjects where nobody has brought any."""

NAMES = (
    *("Albert Einstein", "Marie Curie", "William Shakespeare", "Napoleon", "Barack Obama", "Pablo Picasso"),
    *("Leonardo da Vinci", "Charles Darwin", "Isaac Newton", "Elvis Presley", "Michael Jordan", "Diego Maradona"),
    *("Charlie Chaplin", "Frida Kahlo", "Nelson Mandela", "Mahatma Gandhi", "Vincent van Gogh", "Serena Williams"),
    *("Ludwig van Beethoven", "Stephen Hawking", "Tom Hanks", "Bob Dylan", "Leo Tolstoy", "Jane Austen", "Aristotle"),
    *("Paris", "Tokyo", "New York City", "Cairo", "Sydney", "Rio de Janeiro", "Moscow", "Berlin", "Mumbai", "Toronto"),
    *("France", "Brazil", "Japan", "Kenya", "Canada", "Egypt", "Australia", "Sweden", "Mexico", "China"),
    *("Microsoft", "Toyota", "Apple", "Coca-Cola", "Boeing", "Samsung", "Volkswagen", "Nintendo", "Google", "Sony"),
    *("Harvard University", "the University of Oxford", "the Eiffel Tower", "Mount Everest", "the Nile", "the Sahara"),
    *("the Great Wall of China", "the Amazon River", "the Pacific Ocean", "the Statue of Liberty", "the Mona Lisa"),
    *("Hamlet", "Star Wars", "The Simpsons", "Titanic", "Harry Potter", "Don Quixote", "The Beatles", "Pink Floyd"),
    *("Windows", "the iPhone", "the Ford Mustang", "the Boeing 747", "Android", "Photoshop", "the PlayStation"),
    *("FC Barcelona", "Manchester United", "the New York Yankees", "the United Nations", "NATO", "Buddhism", "chess"),
    *("the Catholic Church", "the Red Cross", "the BBC", "the guitar", "the Olympic Games", "Super Mario Bros."),
)
"""Subjects of many kinds that most models have read of."""
